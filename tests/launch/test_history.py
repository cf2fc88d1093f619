"""The history of a run: events and restarts."""

import json
import time
from pathlib import Path

import pytest

from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.evaluations import ExportWatch
from ssl_vit_launch.history import Event, History, restarts, why_ended
from ssl_vit_launch.local import find_local
from ssl_vit_launch.submission import (
    Submission,
    events_of,
    history_of,
    last_submission,
    new_folder,
    write_submission,
)


def test_events_are_read_in_order_and_a_truncated_line_is_skipped(tmp_path: Path):
    history = History(tmp_path)
    history.add("submitted", "7", nodes=2)
    history.add("started", "7", step=3, text="n1 n2")
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"kind": "stop')
    history.add("failed", "7", rank=3, text="x")
    history.add("completed", "7")
    found = sorted(history.read(), key=lambda event: event.time)
    assert [event.kind for event in found] == ["submitted", "started", "failed", "completed"]
    assert found[2].rank == 3
    assert (found[1].step, found[1].text) == (3, "n1 n2")


def test_every_restart_has_a_reason():
    def event(kind: str, time: float, **facts: object) -> Event:
        return Event(kind, "7", time, **facts)  # type: ignore[arg-type]

    events = [
        event("started", 1),
        event("stopped", 2, step=10, text="SIGUSR2"),
        event("stopped", 3, step=10, text="SIGTERM"),
        event("started", 4, step=10),
        event("started", 5, step=16),
        event("failed", 6, rank=0, text="RuntimeError: gloo: Connection closed by peer"),
        event("failed", 7, rank=3, text="ValueError: no such thing"),
        event("crashed", 8, code=1),
        event("started", 9, step=20),
        event("failed", 10, rank=0, text="RuntimeError: Connection reset by peer"),
        event("crashed", 11, code=137),
        event("started", 12, step=24),
    ]
    found = restarts(events)
    assert [each.step for each in found] == [10, 16, 20, 24]
    assert [each.why for each in found] == [
        "asked to stop (SIGUSR2), saved at step 10",
        "ended without a message: a failed node, or killed",
        "crashed: rank 3: ValueError: no such thing",
        "crashed: a process was killed (SIGKILL: manually, or out of memory)",
    ]


def test_an_error_caused_by_another_ranks_end_is_not_the_reason():
    secondary = Event("failed", "7", 1.0, rank=0, text="RuntimeError: Connection closed by peer")
    assert why_ended([secondary]) == "ended without a message: a failed node, or killed"


def test_a_stop_that_follows_a_failure_is_not_the_reason():
    failed = Event("failed", "7", 1.0, rank=1, text="ValueError: no such thing")
    stopped = Event("stopped", "7", 2.0, step=8, text="SIGTERM")
    assert why_ended([failed, stopped]) == "crashed: rank 1: ValueError: no such thing"
    later = Event("failed", "7", 3.0, rank=1, text="ValueError: no such thing")
    assert why_ended([stopped, later]) == "asked to stop (SIGTERM), saved at step 8"


def test_a_run_of_the_earlier_layout_is_read_and_resubmitted(tmp_path: Path):
    run, first = tmp_path / "run", tmp_path / "run" / "jobs" / "001"
    first.mkdir(parents=True)
    asked = Submission(
        run=str(run),
        logs=str(first),
        cluster=ClusterConfig(scheduler="local"),
        nodes=1,
        min_nodes=1,
        time=1.7e9,
        job="7",
    )
    write_submission(first, asked)
    now = time.time()
    lines = [
        {"kind": "submitted", "job": "7", "time": now - 50, "rank": 0, "nodes": 1},
        {"kind": "started", "job": "7", "time": now - 40, "rank": 0, "step": 0, "text": "n1"},
        {"kind": "started", "job": "7", "time": now - 20, "rank": 0, "step": 0, "text": "n1"},
    ]
    jobs = run / "jobs"
    (jobs / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    failed = {"kind": "failed", "job": "7", "time": now - 30, "rank": 3, "text": "ValueError: no"}
    (jobs / "history_3.jsonl").write_text(json.dumps(failed) + "\n")
    (first / "all_crashes_0").write_text(f"1 {int(now) - 26}\nnonsense\n137 {int(now) - 10}\n")
    (first / "cancelled_0").touch()
    (jobs / "evaluated.txt").write_text("step_00000008\n")
    kinds = [event.kind for event in events_of(run)]
    assert kinds == [
        *("evaluated", "submitted", "started", "failed", "crashed", "started", "crashed"),
    ]
    assert [each.why for each in restarts(events_of(run))] == ["crashed: rank 3: ValueError: no"]
    assert find_local(asked).state == "FAILED"
    second = new_folder(jobs)
    second.mkdir()
    write_submission(second, asked.model_copy(update={"logs": str(second), "job": "8"}))
    history_of(run).add("started", "8", step=8)
    assert (second / "history.jsonl").is_file()
    assert not (second / "history_commands.jsonl").exists()
    assert [each.step for each in restarts(events_of(run))] == [0, 8]
    watch = ExportWatch(last_submission(run))
    export = run / "exports" / "step_00000008"
    export.mkdir(parents=True)
    (export / "backbone.json").touch()
    watch.take(lambda words: pytest.fail(f"{words}: evaluated before"))


def test_commands_have_a_file_of_their_own(tmp_path: Path):
    history = History(tmp_path)
    history.add("submitted", "7")
    history.add("started", "7")
    assert not history.is_canceled
    history.append("cancelled", "7")
    assert history.is_canceled
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1
    assert len(history.read()) == 3
