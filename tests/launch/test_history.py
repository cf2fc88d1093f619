"""The history of a run: events and restarts."""

from pathlib import Path

from ssl_vit_launch.history import Event, History, read_crashes, restarts, why_ended


def test_events_are_read_in_order_and_a_truncated_line_is_skipped(tmp_path: Path):
    history = History(tmp_path)
    history.add("submitted", "7", nodes=2)
    history.add("started", "7", step=3, text="n1 n2")
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"kind": "stop')
    history.add("failed", "7", rank=3, text="x")
    history.add("completed", "7")
    found = history.read()
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


def test_crashes_of_a_batch_script_are_read(tmp_path: Path):
    notes = tmp_path / "all_crashes_0"
    notes.write_text("137 1700000000\nnonsense\n1 1700000100\n")
    assert [(each.code, each.job) for each in read_crashes(notes, "7")] == [(137, "7"), (1, "7")]
    assert read_crashes(tmp_path / "none", "7") == []
