"""A run's length in minutes: the words, the arithmetic, and runs that stay what they became."""

import json
import re
import shutil
import sys
import weakref
from pathlib import Path

import pytest

from ssl_vit.errors import UserError
from ssl_vit.minutes import with_minutes
from ssl_vit.recipes import find_recipe, read_config
from ssl_vit.training.length import Costs, slowest, steps_within
from tests.command_line import losses, python, ssl_vit

MINUTES = "0.5"


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_not_a_length_of_time_is_refused(minutes: float):
    with pytest.raises(UserError, match="is not a length of time") as caught:
        with_minutes([], minutes)
    assert "--minutes 40" in caught.value.remedy


@pytest.mark.parametrize("word", ["schedule.length=5", "schedule.unit=steps", "schedule={}"])
def test_a_length_that_is_given_twice_is_refused(word: str):
    with pytest.raises(UserError, match="both say how long") as caught:
        with_minutes(["seed=1", word], 2.0)
    assert word.partition("=")[0] in caught.value.remedy


@pytest.mark.parametrize("recipe", ["mae_small_data", "mae_vits16", "dinov2_small_data"])
@pytest.mark.parametrize("minutes", [0.25, 40.0])
def test_the_warm_up_keeps_the_share_of_the_recipe(recipe: str, minutes: float):
    before = find_recipe(recipe).schedule
    after = read_config(recipe, with_minutes([], minutes), is_smoke=False).schedule
    assert (after.unit, after.length) == ("minutes", minutes)
    assert after.warmup / after.length == pytest.approx(before.warmup / before.length)


def test_a_given_warm_up_is_left_alone():
    words = with_minutes(["schedule.warmup=3"], 40.0)
    assert read_config("mae_small_data", words, is_smoke=False).schedule.warmup == 3


@pytest.mark.parametrize(
    ("minutes", "elapsed", "once", "each", "steps"),
    [
        (10, 0, 0, 1, 570),  # 5 % of 600 s are the reserve
        (10, 60, 10, 1, 500),
        (10, 60, 10, 5, 100),
        (1, 50, 10, 1, 0),
        (1, 600, 0, 1, 0),
    ],
)
def test_steps_leave_room_for_all_else(
    minutes: float, elapsed: float, once: float, each: float, steps: int
):
    assert steps_within(minutes, elapsed, Costs(once, each, each, 2)) == steps


def test_the_slowest_rank_counts():
    ranks = [Costs(1, 5, 4, 12), Costs(3, 2, 2, 10)]
    assert slowest(ranks) == Costs(3, 5, 4, 10)


def begin(run: Path, shards: Path) -> tuple[str | Path, ...]:
    words = ("pretrain", "mae_small_data", "--smoke", "--run", run)
    return (*words, f"data.shards={shards}", "engine.workers=0")


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("timed") / "run"
    done = ssl_vit(*begin(run, shards), "--minutes", MINUTES)
    assert done.returncode == 0, done.stderr
    return run, done.stderr


def plan_of(run: Path) -> dict[str, float]:
    return json.loads((run / "plan.json").read_text())


def test_minutes_become_the_same_run_as_that_many_steps(
    timed: tuple[Path, str], shards: Path, tmp_path: Path
):
    run, said = timed
    plan = plan_of(run)
    found = re.search(rf"{MINUTES} minutes: ([\d,]+) steps? at .* images/s measured over \d+", said)
    assert found is not None, said
    steps = int(found[1].replace(",", ""))
    assert plan["total_steps"] == steps == len(losses(run)) >= 1
    assert plan["measured_images_per_second"] > 0
    assert plan["warmup_steps"] == round(steps * 4 / 20)
    assert not (run / "rehearsal").exists()
    schedule = (f"schedule.length={steps}", f"schedule.warmup={plan['warmup_steps']}")
    done = ssl_vit(*begin(tmp_path / "steps", shards), "schedule.unit=steps", *schedule)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "steps") == losses(run)


def test_a_run_that_is_started_again_keeps_its_length(
    timed: tuple[Path, str], shards: Path, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(timed[0], run)
    before = plan_of(run)
    command = (*begin(run, shards), "--minutes", MINUTES)
    last = f"step_{before['total_steps']:08d}"
    shutil.rmtree(run / "exports" / last)
    again = ssl_vit(*command)
    assert again.returncode == 0, again.stderr
    assert "measuring" not in again.stderr
    assert "derived from" in again.stderr
    assert plan_of(run)["total_steps"] == before["total_steps"]
    assert (run / "exports" / last).is_dir()
    finished = ssl_vit(*command)
    assert finished.returncode == 0
    assert finished.stderr == ""
    assert losses(run) == losses(timed[0])
    (run / "plan.json").unlink()
    refused = ssl_vit(*command)
    assert refused.returncode == 2
    assert [line[:6] for line in refused.stderr.splitlines()] == ["error:", "fix:  "]
    assert "plan.json is missing or damaged" in refused.stderr


@pytest.mark.parametrize("stage", [2, 3])
def test_nothing_holds_the_network_that_was_only_timed(stage: int, shards: Path, tmp_path: Path):
    done = python("-m", "tests.training.test_minutes", str(stage), tmp_path / "run", shards)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "objective False, 0 parameters"


def main(stage: str, run: str, shards: str) -> None:
    """Print what is alive of the rehearsed network when the run's own would be built."""
    from ssl_vit import pretrain
    from ssl_vit.distributed import set_library_environment

    words = ["schedule.unit=minutes", "schedule.length=0.05", f"data.shards={shards}"]
    stage_word = f"engine.zero_stage={stage}"
    prepared = pretrain.prepare("mae_vits16", Path(run), [*words, stage_word], is_smoke=True)
    set_library_environment(prepared.plan.device)

    from ssl_vit.training.engine import start_process_group
    from ssl_vit.training.preemption import Preemption

    start_process_group(prepared.plan.device, prepared.processes)
    plain = pretrain.initial_objective
    kept: list[weakref.ref] = []

    def followed(*arguments):
        objective = plain(*arguments)
        kept.extend(map(weakref.ref, (objective, *objective.parameters())))
        return objective

    pretrain.initial_objective = followed
    with Preemption(is_first=True) as preemption:
        costs = pretrain._rehearse(prepared, preemption)
    assert costs is not None
    pretrain._with_length(prepared, costs)
    alive = [reference() is not None for reference in kept]
    print(f"objective {alive[0]}, {sum(alive[1:])} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
