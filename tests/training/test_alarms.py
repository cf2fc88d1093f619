"""A run that collapses says so: in its log, in its folder, and to whoever asks how it goes."""

import json
from dataclasses import asdict
from pathlib import Path

from ssl_vit.monitors.collapse import Alarm
from ssl_vit.training.log import describe_alarm
from ssl_vit.training.metrics_file import AppendedLines, read_alarms
from tests.command_line import ssl_vit
from tests.synthetic import write_shards

ALARM = Alarm(12, "one direction", "all alike", "a setting")


def test_alarms_of_steps_that_are_made_again_are_cut_off(tmp_path: Path):
    file = tmp_path / "alarms.jsonl"
    later = Alarm(30, "few dimensions", "fewer", "another")
    AppendedLines(file, 0).write(asdict(alarm) for alarm in (ALARM, later))
    with file.open("a") as opened:
        opened.write('{"step": 31, "symp')  # a kill
    assert read_alarms(file) == [ALARM, later]
    AppendedLines(file, 20)
    assert read_alarms(file) == [ALARM]
    assert read_alarms(tmp_path / "none") == []


def test_an_alarm_in_words_has_symptom_figures_and_cure():
    assert describe_alarm(ALARM) == (
        "ALARM at step 12: one direction: all alike\n      usual remedies: a setting"
    )


def test_without_centering_a_run_collapses_and_says_so_within_200_steps(tmp_path: Path):
    shards = write_shards(tmp_path, per_class=16)
    run = tmp_path / "run"
    done = ssl_vit(
        *("pretrain", "dinov2_small_data", "--smoke", "--run", run, f"data.shards={shards}"),
        *("objective.centering=none", "objective.momentum=0.9", "schedule.length=200"),
        *("objective.prototypes=64", "optimizer.base_learning_rate=3e-3"),
    )
    assert done.returncode == 0, done.stderr
    (alarm, *_) = read_alarms(run / "alarms.jsonl")
    assert alarm.symptom == "one answer"
    assert "objective.centering=sinkhorn" in alarm.remedy
    assert describe_alarm(alarm) in done.stderr
    assert "ALARM: one answer" in done.stderr  # the progress line
    status = ssl_vit("launch", "status", run)
    assert f"the last at step {read_alarms(run / 'alarms.jsonl')[-1].step}" in status.stdout


def test_a_run_with_the_recipes_own_settings_raises_none(tmp_path: Path):
    shards = write_shards(tmp_path, per_class=16)
    run = tmp_path / "run"
    done = ssl_vit(
        *("pretrain", "dinov2_small_data", "--smoke", "--run", run, f"data.shards={shards}"),
        "schedule.length=260",  # the grace of the start is over after 200
    )
    assert done.returncode == 0, done.stderr
    assert read_alarms(run / "alarms.jsonl") == []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("monitor/rankme" in line for line in lines[19::20])
