"""Schedules at steps worked out by hand."""

import pytest

from ssl_vit.schedules import cosine, warmup_cosine


@pytest.mark.parametrize(
    ("fraction", "value"),
    # cos 0, 60°, 90°, 120°, 180° are 1, 1/2, 0, -1/2, -1.
    [(0.0, 3.0), (1 / 3, 2.5), (0.5, 2.0), (2 / 3, 1.5), (1.0, 1.0), (-1.0, 3.0), (2.0, 1.0)],
)
def test_half_a_cosine(fraction: float, value: float) -> None:
    assert cosine(3.0, 1.0, fraction) == pytest.approx(value)


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 0.25),
        (1, 0.5),
        (2, 0.75),
        (3, 1.0),
        (4, 1.0),
        (8, 0.8535533906),  # (1 + cos 45°) / 2
        (12, 0.5),
        (16, 0.1464466094),  # (1 + cos 135°) / 2
        (19, 0.0096073598),  # (1 + cos 168.75°) / 2
        (20, 0.0),
    ],
)
def test_a_warm_up_of_four_steps_and_a_cosine_of_sixteen(step: int, value: float) -> None:
    assert warmup_cosine(step, 20, 4, peak=1.0, end=0.0) == pytest.approx(value, abs=1e-9)


def test_the_end_is_where_the_cosine_goes() -> None:
    assert warmup_cosine(12, 20, 4, peak=1.0, end=0.2) == pytest.approx(0.6)
    assert warmup_cosine(20, 20, 4, peak=1.0, end=0.2) == pytest.approx(0.2)


def test_no_warm_up_begins_at_the_peak() -> None:
    assert warmup_cosine(0, 10, 0, peak=0.7, end=0.0) == 0.7


def test_a_run_may_be_all_warm_up() -> None:
    values = [warmup_cosine(step, 4, 4, peak=1.0, end=0.0) for step in range(4)]
    assert values == [0.25, 0.5, 0.75, 1.0]
