"""A run's length in minutes: measured once, kept, and the same run as with so many steps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.cost.estimate import make_estimate
from ssl_vit.cost.plan_report import describe
from ssl_vit.errors import UserError
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import find_recipe, read_config
from ssl_vit.run.folder import RunFolder
from ssl_vit.run.minutes import with_minutes
from ssl_vit.run.pretrain import prepare
from ssl_vit.training.length import Costs, Timed, is_measured, slowest, steps_within, warmed_up
from ssl_vit.training.plan import DataFacts, Machine, make_plan, with_length
from tests.command_line import losses, run_ranks, ssl_vit
from tests.synthetic import write_shards

DATA = DataFacts(6_400, "test", (("a", 6_400),))
QUICK = "checkpoint.every_steps=1000"
MINUTES = ("schedule.unit=minutes", "schedule.length=40")


@pytest.mark.parametrize(
    ("words", "length", "warmup"),
    [
        (MINUTES, 40, 2),  # the recipe has 40 of 800 epochs
        ((*MINUTES, "schedule.warmup=8"), 40, 8),
        (("schedule={unit: minutes, length: 20}",), 20, 1),
        (("schedule={unit: minutes, length: 20, warmup: 0}",), 20, 0),
        (("schedule.unit=minutes",), 800, 40),
        (("schedule.length=400",), 400, 40),
    ],
)
def test_a_schedule_in_minutes_keeps_the_recipes_share_of_warm_up(
    words: tuple[str, ...], length: float, warmup: float
):
    schedule = read_config("mae_vitb16", words, is_smoke=False).schedule
    assert (schedule.length, schedule.warmup) == (length, pytest.approx(warmup))


def test_so_does_a_file_and_repeating_its_own_words_changes_nothing(tmp_path: Path):
    file = tmp_path / "my.yaml"
    file.write_text("recipe: mae_vitb16\nschedule: {unit: minutes, length: 7.1}\n")
    config = read_config(str(file), (), is_smoke=False)
    assert config.schedule.warmup == pytest.approx(7.1 / 20)
    again = read_config(str(file), with_minutes((), 7.1), is_smoke=False)
    assert again == config


@pytest.mark.parametrize(
    ("minutes", "words", "problem"),
    [
        (0.0, (), "--minutes 0 is not a valid length"),
        (-3.0, (), "--minutes -3 is not a valid length"),
        (float("nan"), (), "--minutes nan is not a valid length"),
        (float("inf"), (), "--minutes inf is not a valid length"),
        (40.0, ("schedule.length=9",), "--minutes 40 and schedule.length=9 both set"),
        (40.0, ("seed=1", "schedule.unit=steps"), "--minutes 40 and schedule.unit=steps both set"),
        (40.0, ("schedule={length: 3}",), "both set"),
    ],
)
def test_what_is_not_a_length_is_refused(minutes: float, words: tuple[str, ...], problem: str):
    with pytest.raises(UserError) as refused:
        with_minutes(words, minutes)
    assert problem in refused.value.problem


def test_the_words_that_minutes_stand_for():
    assert with_minutes(("seed=1",), None) == ["seed=1"]
    assert with_minutes(("seed=1",), 40.0) == ["seed=1", *MINUTES[:1], "schedule.length=40.0"]


def test_steps_fill_what_is_left_of_the_minutes():
    costs = Costs(once=17.0, each=0.5, update=0.4, num_measured=10)
    # A twentieth of 60 s is left free: 57 - 10 - 17 = 30 s.
    assert steps_within(1.0, 10.0, costs) == 60
    assert steps_within(1.0, 40.0, costs) == 0
    assert steps_within(1.0, 100.0, costs) == 0


def test_the_slowest_process_counts():
    costs = [Costs(1.0, 0.5, 0.4, 12), Costs(2.0, 0.3, 0.2, 12)]
    assert slowest(costs) == Costs(2.0, 0.5, 0.4, 12)


@pytest.mark.parametrize(
    ("seconds", "minutes", "enough", "counted"),
    [
        ([9.0, 1, 1, *[1.0] * 9], 60, False, 9),  # nine of ten updates
        ([9.0, 1, 1, *[1.0] * 10], 60, True, 10),
        ([1.0, 1, 1, *[0.1] * 50], 60, False, 50),  # 5 of 10 seconds
        ([1.0, 1, 1, *[0.1] * 101], 60, True, 101),
        ([40.0], 10, False, 1),  # the first alone tells nothing
        ([40.0, 20.0], 10, True, 1),
        ([10.0, 10.0, 5.0], 10, False, 1),
        ([10.0, 10.0, 5.0, 5.0], 10, True, 1),
    ],
)
def test_a_few_steps_are_timed_in_a_small_part_of_the_run(
    seconds: list[float], minutes: float, enough: bool, counted: int
):
    assert is_measured(seconds, minutes) is enough
    assert len(warmed_up(seconds)) == counted
    assert max(warmed_up(seconds)) == seconds[-1]


def test_the_plan_has_no_steps_before_they_are_measured_and_then_all_that_follows():
    config = apply_overrides(find_recipe("mae_vitb16"), (*MINUTES, "schedule.warmup=2"))
    machine, timed = Machine(1, 8, "cpu"), Timed(250, 137.0)
    unknown = make_plan(config, machine, DATA)
    assert (unknown.total_steps, unknown.warmup_steps, unknown.total_epochs) == (0, 0, 0)
    known = make_plan(config, machine, DATA, timed=timed)
    assert with_length(unknown, config, timed) == known
    assert (known.total_steps, known.warmup_steps) == (250, 12)
    assert known.total_epochs == 250 * 4096 / 6_400
    assert known.sets[0].times_seen == 250 * 4096 / 6_400
    assert known.measured_images_per_second == 137.0


def test_the_forecast_says_that_steps_follow_from_the_rate():
    config = apply_overrides(find_recipe("mae_vitb16"), (*MINUTES, "schedule.warmup=2"))
    estimate = make_estimate(config, 1, "h100", 0.4, 10_000)
    text = "\n".join(describe(estimate))
    about = round(2_400 * estimate.images_per_second / 4096)
    assert (
        f"40 minutes; the number of steps follows from the rate measured at the start, at the rate "
        f"below about {about:,} steps" in text
    )
    assert estimate.hours == pytest.approx(40 / 60, rel=0.01)


def test_minutes_make_the_same_run_as_so_many_steps_and_a_resumed_run_keeps_them(tmp_path: Path):
    """Two processes, whose rates differ; then one, on what they left."""
    shards = write_shards(tmp_path / "data")
    run, twin, words = tmp_path / "run", tmp_path / "twin", (f"data.shards={shards}", QUICK)
    begin = ("pretrain", "mae_vits16", "--smoke", "--minutes", "0.4", *words, "--run")
    ranks = run_ranks([(*begin, run)] * 2)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr
    plan: dict[str, Any] = json.loads((run / "plan.json").read_text())
    steps, warmup = plan["total_steps"], plan["warmup_steps"]
    assert f"0.4 minutes: {steps:,} step" in ranks[0].stderr
    assert "measured over" not in ranks[1].stderr  # one process speaks
    assert warmup == round(steps / 5)  # the twin's 4 of 20
    assert not (run / "rehearsal").exists()
    found = losses(run)
    assert [step for step, _, _ in found] == list(range(1, steps + 1))

    said = (f"schedule.length={steps}", f"schedule.warmup={warmup}")
    straight = run_ranks([("pretrain", "mae_vits16", "--smoke", *words, *said, "--run", twin)] * 2)
    assert straight[0].returncode == 0, straight[0].stderr
    assert losses(twin) == found

    last = f"step_{steps:08d}"
    for part in ("checkpoints", "exports"):
        shutil.rmtree(run / part / last)
    again = ssl_vit(*begin, run)
    assert again.returncode == 0, again.stderr
    assert "measuring" not in again.stderr
    assert json.loads((run / "plan.json").read_text())["total_steps"] == steps
    resumed = losses(run)
    assert [(step, samples) for step, _, samples in resumed] == [
        (step, samples) for step, _, samples in found
    ]
    assert [loss for _, loss, _ in resumed] == pytest.approx([loss for _, loss, _ in found], 1e-3)


@pytest.mark.parametrize("text", [None, "", "[]", '{"total_steps": "many"}', '{"total_steps": 0}'])
def test_a_begun_run_without_its_plan_is_refused(tmp_path: Path, text: str | None):
    run, words = tmp_path / "run", with_minutes(("data.source=synthetic",), 5.0)
    RunFolder(run).write_config(read_config("mae_vits16", words, is_smoke=True))
    assert prepare("mae_vits16", run, words, is_smoke=True).plan.total_steps == 0
    (run / "checkpoints" / "step_00000005").mkdir(parents=True)
    if text is not None:
        (run / "plan.json").write_text(text)
    with pytest.raises(UserError) as refused:
        prepare("mae_vits16", run, words, is_smoke=True)
    assert refused.value.problem.startswith(f"{run} has checkpoints, but {run / 'plan.json'}")
    assert refused.value.remedy.startswith("restore plan.json")


def test_a_mistake_on_the_command_line_is_two_lines(tmp_path: Path):
    done = ssl_vit("pretrain", "mae_vits16", "--run", tmp_path / "run", "--minutes", "0")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "run").exists()
