"""Progress without a terminal: a plain line now and then, with rate and remaining time."""

import pytest

from ssl_vit import progress as module
from ssl_vit.progress import progress
from ssl_vit.units import format_bytes, format_seconds, parse_bytes


def test_a_log_gets_a_line_now_and_then_with_rate_and_eta(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("packing", 1000, "images") as advance:
        for _ in range(10):
            now += 4.0
            advance(50)
    # After 16 and 32 seconds: the first look at or past 15 since the last word.
    assert capsys.readouterr().err.splitlines() == [
        "packing 200/1,000 images  12.5 images/s  ETA 1:04",
        "packing 400/1,000 images  12.5 images/s  ETA 0:48",
    ]


def test_short_work_is_done_without_a_word(capsys: pytest.CaptureFixture[str]):
    with progress("packing", 10, "images") as advance:
        advance(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65, "1:05"), (3661.4, "1:01:01")])
def test_times_are_written_as_on_a_clock(seconds: float, text: str):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2.5e12, "2.5 TB")]
)
def test_sizes_are_written_in_thousands(num_bytes: float, text: str):
    assert format_bytes(num_bytes) == text
    if num_bytes:  # nothing is no size to ask for
        assert parse_bytes(text, "--x ") == num_bytes
