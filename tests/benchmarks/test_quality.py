"""What `benchmarks/quality.py` works out beside its runs: subset, length, minutes, verdicts."""

import gzip
import struct
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vit.errors import UserError
from tests.command_line import ENVIRONMENT, PATIENCE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # last: its files have names that others might have

import quality_sets  # noqa: E402
from quality_runs import Task, count_updates, training_minutes, without_warmup  # noqa: E402
from quality_sets import draw_subset, find_fashion, lay_out_fashion  # noqa: E402
from quality_table import Outcome, Point, Requirement, Score, table, verdicts  # noqa: E402


def outcome(
    *knn: float, untrained: float = 0.6, alarms: int = 0, ranks: tuple[float, ...] = ()
) -> Outcome:
    points = tuple(
        Point(10 * n, 4.0 * n, 1280 * n, 0.5, rank, Score(share, 0.7))
        for n, (share, rank) in enumerate(zip_longest(knn, ranks), start=1)
    )
    return Outcome("mae", points, Score(untrained, 0.72), alarms, widens=bool(ranks))


def test_a_subset_has_every_class_in_its_share():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    places = draw_subset(labels, 100, seed=0)
    assert np.bincount(labels[places]).tolist() == [60, 30, 10]
    assert places == sorted(set(places))


def test_what_rounding_leaves_over_of_a_subset_is_drawn_too():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    places = draw_subset(labels, 7, seed=0)  # exactly 3.5, 2.1 and 1.4
    assert np.bincount(labels[places]).tolist() == [4, 2, 1]


def test_a_seed_is_one_subset():
    labels = np.zeros(1000, dtype=int)
    assert draw_subset(labels, 10, seed=0) == draw_subset(labels, 10, seed=0)
    assert draw_subset(labels, 10, seed=0) != draw_subset(labels, 10, seed=1)


def test_idx_files_become_pictures_in_class_folders(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(quality_sets, "PARTS", {"train": 10, "val": 10})
    for name in ("train", "t10k"):
        labels = np.arange(20, dtype=np.uint8) % 10
        pixels = np.arange(20 * 28 * 28, dtype=np.int64).reshape(20, 28, 28).astype(np.uint8)
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            file = tmp_path / f"{name}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(head + values.tobytes()))
    lay_out_fashion(find_fashion(tmp_path, tmp_path), tmp_path / "images")
    for part in ("train", "val"):
        (boot,) = (tmp_path / "images" / part / "boot").iterdir()
        assert int(boot.stem) in (9, 19)
        np.testing.assert_array_equal(np.asarray(Image.open(boot)), pixels[int(boot.stem)])


def test_a_folder_without_the_four_files_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="lacks some"):
        find_fashion(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("rate", "minutes", "updates"),
    [(2.5, 40, 6000), (1.0, 1.5, 90), (0.999, 1.0, 50), (0.01, 1, 10)],
)
def test_steps_fill_the_minutes_in_ten_equal_parts(rate: float, minutes: float, updates: int):
    assert count_updates(rate, minutes) == updates


def test_the_first_steps_do_not_count_for_the_rate():
    quick = [0.0, 0.1, 0.2, 0.3, 0.4]
    assert without_warmup([*quick, 5.5, 6.5, 7.5]) == [5.5, 6.5, 7.5]
    assert without_warmup([0.0, 10.0, 20.0, 30.0, 40.0]) == [30.0, 40.0]


def test_minutes_leave_out_the_pause_between_two_starts():
    stamps = [100.0, 160.0, 9000.0, 9060.0]  # stopped after the second step
    lines = [
        {"step": step, "time": stamp, "images_per_second": 2.0}
        for step, stamp in enumerate(stamps, start=1)
    ]
    minutes = training_minutes(lines, starts=[0, 2], batch=120)
    assert minutes == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_a_run_keeps_the_warm_up_share_of_its_recipe():
    task = Task("mae_small_data", ("objective.mask_ratio=0.8",), False, 3, 40.0)
    words = task.command(Path("RUN"), Path("SHARDS"), 1000, 100)
    assert "schedule.warmup=50" in words  # 10 of the recipe's 200 epochs
    assert words.index("objective.mask_ratio=0.8") < words.index("seed=3")


def test_every_other_setting_has_a_folder_of_its_own():
    tasks = [
        Task("mae_small_data", (), False, 0, 40.0),
        Task("mae_small_data", (), False, 1, 40.0),
        Task("mae_small_data", (), True, 0, 40.0),
        Task("mae_small_data", (), False, 0, 20.0),
        Task("mae_small_data", ("objective.mask_ratio=0.8",), False, 0, 40.0),
    ]
    assert len({task.folder_name for task in tasks}) == len(tasks)


def test_the_table_is_markdown_with_a_line_for_every_export():
    lines = table([("raw pixels", Score(0.811, 0.8214))], [outcome(0.61, 0.655)])
    assert lines[2:] == [
        "| raw pixels | – | – | 81.1 | 82.1 | – | – |",
        "| mae | 4.0 | 1,280 | 61.0 | 70.0 | 0.500 | – |",
        "| mae | 8.0 | 2,560 | 65.5 | 70.0 | 0.500 | – |",
    ]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(("last", "ending"), [(0.651, ": met."), (0.649, ": NOT MET.")])
def test_the_lead_of_the_last_export_is_held_to_what_is_required(last: float, ending: str):
    lead, alarms = verdicts("Fashion", Requirement(5.0, False), [outcome(0.9, last)], 1000)
    assert f"points (required ≥ 5){ending}" in lead
    assert lead.startswith(f"Fashion: mae k-NN − random initialization = +{100 * last - 60:.1f}")
    assert alarms.endswith("alarms: none (required: none): met")


def test_rising_compares_the_thirds_of_a_run():
    rising = outcome(0.60, 0.66, 0.61, 0.65, 0.64, 0.65)
    falling = outcome(0.66, 0.67, 0.64, 0.65, 0.64, 0.67)
    _, up, _ = verdicts("ELPV", Requirement(0.0, True), [rising], 664)
    _, down, _ = verdicts("ELPV", Requirement(0.0, True), [falling], 664)
    assert "rises from 63.0" in up
    assert up.endswith(": met")
    assert down.endswith("NOT MET")


@pytest.mark.parametrize(("ranks", "ending"), [((90, 80, 95), ": met"), ((90, 95, 80), "NOT MET")])
def test_what_a_teacher_sees_must_widen(ranks, ending):
    wide = outcome(0.6, 0.7, 0.65, ranks=ranks)
    _, rank, _ = verdicts("Fashion", Requirement(5.0, False), [wide], 1000)
    assert rank.startswith(f"Fashion: mae RankMe rises from 90.0 to {ranks[2]}.0")
    assert rank.endswith(ending)


def test_an_alarm_is_counted_and_not_met():
    *_, alarms = verdicts("ELPV", Requirement(0.0, True), [outcome(0.7, alarms=2)], 664)
    assert alarms == "ELPV: mae alarms: 2 (required: none): NOT MET"


@pytest.mark.parametrize(
    "words",
    [
        ("--recipes", "no_such_recipe"),
        ("--recipes", "mae_small_data", "--set", "dino_vits16:seed=1"),
        ("--recipes", "mae_small_data", "--set", "mae_small_data:seed=1"),
        ("--recipes", "mae_small_data", "--data", "fashion-mnist", "--fashion", "nowhere"),
        ("--only", "beit", "--rows", "dalle"),
        ("--only", "beit", "--set", "dino_vits16:seed=1"),
        ("--only", "beit", "--set", "beit_small_data:seed=1"),
    ],
)
def test_a_mistake_is_two_lines_and_writes_nothing(words: tuple[str, ...], tmp_path: Path):
    work = tmp_path / "work"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "quality.py"), "--work", str(work), *words],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    error, fix = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert fix.startswith("fix:   ")
    assert not work.exists()
