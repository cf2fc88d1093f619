"""What `benchmarks/quality.py --only beit` works out beside its runs."""

import sys
from pathlib import Path

import pytest
import torch

from ssl_vit.errors import UserError
from ssl_vit.exports.loading import load_tokenizer
from ssl_vit.objectives.config import BeitConfig
from ssl_vit.run.given import settle_objective
from tests.benchmarks.test_quality import BENCHMARKS

sys.path.append(str(BENCHMARKS))  # last: its files have names that others might have

import quality_beit_runs
from quality_beit import choose, count_runs, lay_out_stripes, seeds_of
from quality_beit_runs import BEIT, ROWS, TOKENIZER, Bench, last_tenth, write_placeholder
from quality_beit_scores import inner_block, usage
from quality_beit_table import Codes, Result, best, table, verdicts
from quality_table import Score


def scores(cls: float, mean: float, inner: float) -> dict[str, Score]:
    return {
        "cls": Score(cls, cls),
        "mean": Score(mean, mean),
        "inner": Score(inner, inner),
    }


def result(
    key: str, knn: dict[str, Score], seed: int = 0, used: float | None = None, trained: bool = False
) -> Result:
    codes = None if used is None else Codes(used, 20.5, 64, 0.6 if trained else None)
    spent = ((4.0, 16.0), (100, 500)) if trained else ((20.0,), (600,))
    return Result(
        key, ROWS[key].title, seed, *spent, knn, scores(0.5, 0.6, 0.4), codes, 0.1, 0.05, 0
    )


def bench(folder: Path) -> Bench:
    return Bench(folder, folder / "shards", 10.0, {TOKENIZER: [], BEIT: []}, True, "a machine")


def test_every_teacher_is_a_row_that_needs_none():
    teachers = [ROWS[row.teacher] for row in ROWS.values() if row.teacher]
    assert {teacher.key for teacher in teachers} == {"mae", "dinov2"}
    assert not any(teacher.teacher for teacher in teachers)


def test_a_teacher_that_is_not_shown_is_counted_as_a_run():
    rows = choose(["features-mae"], None, ROWS)
    assert count_runs(rows, None, is_smoke=False) == 6
    assert count_runs(choose(None, None, ROWS), [4], is_smoke=False) == len(ROWS)


def test_three_rows_have_three_seeds_unless_seeds_are_given():
    several = {row.key for row in ROWS.values() if len(seeds_of(row, None, is_smoke=False)) == 3}
    assert several == {"mae", "features-mae", "placeholder"}
    assert seeds_of(ROWS["pixels"], [5, 6, 5], is_smoke=False) == [5, 6]


def test_an_unknown_row_is_refused():
    with pytest.raises(UserError, match="dalle is not a row"):
        choose(["pixels", "dalle"], None, ROWS)


def test_the_inner_readout_is_after_two_thirds_of_the_blocks():
    assert [inner_block(depth) for depth in (1, 2, 6, 12)] == [1, 1, 4, 8]


def test_usage_of_codes_is_that_of_their_distribution():
    used, perplexity = usage(torch.tensor([[0, 0, 3, 3], [5, 5, 6, 6]]), 8)
    assert used == 0.5
    assert perplexity == pytest.approx(4.0)


def test_the_last_tenth_of_a_log_is_averaged():
    lines = [{"codes_used": float(step), "loss": -1.0} for step in range(1, 21)]
    assert last_tenth(lines, "codes_used", "loss") == (19.5, -1.0)
    assert last_tenth(lines[:3], "codes_used") == (3.0,)


def test_the_best_readout_is_that_of_the_mean_over_the_seeds():
    found = best([scores(0.9, 0.7, 0.1), scores(0.5, 0.8, 0.1)], "knn")
    assert found.readout == "mean"
    assert found.accuracy == pytest.approx(0.75)
    assert str(found) == "75.0 (mean of patches)"


def test_features_are_held_to_the_placeholder_their_untrained_network_and_mae():
    runs = [
        result("mae", scores(0.90, 0.80, 0.8)),
        result("features-mae", scores(0.65, 0.5, 0.5), used=0.8, trained=True),
        result("placeholder", scores(0.4, 0.4, 0.66), used=0.1),
    ]
    codes, untrained, placeholder, mae, *linear = verdicts("ELPV", runs, 664)
    assert "80 % of its codes (required ≥ 80 %): met" in codes
    assert "65.0 (class token): +5.0 points over its untrained network, 60.0 (mean of" in untrained
    assert "(required > 0): met" in untrained
    assert "-1.0 points over the placeholder, 66.0 (mean of patches after two" in placeholder
    assert "(required > 0): NOT MET" in placeholder
    assert "-25.0 points over MAE, 90.0 (class token)" in mae
    assert mae.endswith("NOT REACHED")
    assert len(linear) == 3


def test_level_with_mae_is_within_the_noise():
    runs = [
        result("mae", scores(0.80, 0.7, 0.7)),
        result("features-mae", scores(0.78, 0.7, 0.7), used=0.79, trained=True),
    ]
    codes, _, mae, *_ = verdicts("ELPV", runs, 664)
    assert codes.endswith("NOT MET")
    assert mae.endswith("reached")  # 2 points of 4.5


def test_the_table_has_a_line_for_every_run():
    runs = [
        result("mae", scores(0.9, 0.8, 0.7)),
        result("features-mae", scores(0.65, 0.5, 0.5), seed=2, used=0.875, trained=True),
    ]
    lines = table(Score(0.7, 0.8), [(BEIT, scores(0.5, 0.6, 0.4))], runs)
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1] == (
        "| BEiT, features of MAE | 2 | 4.0 + 16.0 | 100 + 500 | 65.0, 65.0 | 50.0, 50.0 "
        "| 50.0, 50.0 | 88 % of 64 | 20.5 | 60 % | 10.0 (5.0) |"
    )


def test_the_placeholder_is_a_tokenizer_that_beit_takes(tmp_path: Path):
    own = bench(tmp_path)
    write_placeholder(tmp_path / "first", own.read_config(TOKENIZER), 128, "0" * 16, seed=1)
    write_placeholder(tmp_path / "second", own.read_config(TOKENIZER), 128, "0" * 16, seed=2)
    networks = [load_tokenizer(tmp_path / name) for name in ("first", "second")]
    images = torch.randn(2, 3, *networks[0].encoder.config.height_width)
    codes = [network(images) for network in networks]
    assert not torch.equal(*codes)
    config = own.read_config(BEIT)
    assert isinstance(config.objective, BeitConfig)
    given = config.objective.model_copy(update={"tokenizer": str(tmp_path / "first")})
    settled, _ = settle_objective(config.model_copy(update={"objective": given}), 128)
    assert settled.objective.num_codes == networks[0].codebook.num_codes == 16


def test_cpu_time_of_an_interrupted_run_is_added_up(tmp_path: Path, monkeypatch):
    clock = iter([1.0, 4.0, 10.0, 15.0])
    monkeypatch.setattr(quality_beit_runs, "_children_seconds", lambda: next(clock))
    stops = iter([True, False])

    def run(*words: str) -> None:
        if next(stops):
            raise KeyboardInterrupt

    monkeypatch.setattr(quality_beit_runs, "run_command", run)
    record = tmp_path / "run.json"
    with pytest.raises(KeyboardInterrupt):
        quality_beit_runs._run_counted([], 20, record)
    assert quality_beit_runs._read_spent(record) is None
    spent = quality_beit_runs._run_counted([], 20, record)
    assert spent == quality_beit_runs.Spent(steps=20, cpu_seconds=3.0 + 5.0, starts=2)
    assert quality_beit_runs._read_spent(record) == spent


def test_stripes_are_two_classes_in_two_parts(tmp_path: Path):
    lay_out_stripes(tmp_path)
    assert len(list(tmp_path.glob("train/across/*.png"))) == 64
    assert len(list(tmp_path.glob("val/down/*.png"))) == 32
