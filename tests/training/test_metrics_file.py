"""`metrics.jsonl` after a kill."""

from pathlib import Path

import pytest

from ssl_vit.training.metrics_file import (
    AppendedLines,
    count_until,
    cut_after,
    lines_with,
    read_metrics,
)


def test_lines_of_steps_that_will_be_made_again_and_half_lines_are_cut(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_after(file, 2)
    assert read_metrics(file) == [{"step": 1}, {"step": 2}]


def test_lines_that_say_something_of_a_name_are_found(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2}\n{"step": 3, "loss": null}\n')
    assert list(lines_with(file, "loss")) == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": None}]


def test_a_missing_file_is_an_empty_one(tmp_path: Path):
    cut_after(tmp_path / "metrics.jsonl", 2)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_lines_are_counted_whatever_a_kill_left_of_the_last(tmp_path: Path):
    file = tmp_path / "bad_samples.jsonl"
    assert count_until(file, 5) == 0
    file.write_bytes('{"step": 2, "key": "ü"}\n{"step": 7}\n{"step": 3, "key": "ü'.encode()[:-1])
    assert count_until(file, 5) == 1
    assert count_until(file, 7) == 2


def test_lines_wait_where_the_disk_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "metrics.jsonl"
    file.symlink_to("/dev/full")
    lines = AppendedLines(file, 0)
    lines.write([{"step": 1, "key": "a\udce9"}])
    lines.write([{"step": 2}])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"cannot write {file}: No space left on device (free some space" in said[0]
    waiting = lines._waiting
    lines.close()
    assert f"2 lines of {file} were lost" in capsys.readouterr().err
    # There is room again.
    file.unlink()
    again = AppendedLines(file, 0)
    again._waiting = waiting
    again.write([{"step": 3}])
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3]
    assert file.read_text().startswith('{"step": 1, "key": "a\\\\xe9"}\n')
