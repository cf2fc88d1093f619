"""What a run prints when it continues with groups of images of another size than before."""

import pytest

from ssl_vit.recipes import read_config
from ssl_vit.run.messages import grouping_notes

OLD = (64, 1)


@pytest.mark.parametrize(
    ("words", "now", "named"),
    [
        ((), (64, 1), []),
        ((), (32, 2), ["KoLeo"]),  # Sinkhorn-Knopp sees the same 64 images
        ((), (32, 1), ["KoLeo", "Sinkhorn-Knopp"]),
        (("objective.koleo_weight=0",), (32, 2), []),
        (("objective.koleo_weight=0", "objective.centering=average"), (8, 2), []),
        (("objective.koleo_weight=0", "backbone.drop_path=0.1"), (32, 2), ["drop path"]),
    ],
)
def test_what_compares_images_is_named_where_its_groups_change(
    words: tuple[str, ...], now: tuple[int, int], named: list[str]
):
    config = read_config("dinov2_small_data", words, is_smoke=False)
    lines = grouping_notes(config, OLD, now)
    assert len(lines) == bool(named)
    for name in ("KoLeo", "Sinkhorn-Knopp", "drop path"):
        assert (name in "".join(lines)) == (name in named), lines
    assert grouping_notes(config, (0, 0), now) == []  # before the first start


def test_of_mae_nothing_is_said():
    assert grouping_notes(read_config("mae_small_data", (), is_smoke=False), OLD, (16, 4)) == []
