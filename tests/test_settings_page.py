"""docs/settings.md is what the configs say today, and its tables name settings that exist."""

import re

import pytest

from docs.settings_page import DINOV2, MAE, PAGE, page
from ssl_vit.config import field_paths
from ssl_vit.objectives.config import DinoConfig, MaeConfig
from ssl_vit.run.config import RunConfig


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run `make settings`"


def test_a_row_has_default_bounds_and_sentence() -> None:
    assert (
        "| `mask_ratio` | `0.75` | 0 < mask_ratio < 1 | Share of the patches that are hidden; "
        'the count is exact (section 3, "Masking"). |'
    ) in page()
    assert "| `recipe` | required |  | Name of the recipe" in page()
    assert "| `tf32` | `false` | true, false | Let float32 matrix products" in page()
    assert "| `compile` | `auto` | true, false, auto | Apply `torch.compile`" in page()


@pytest.mark.parametrize("rows", [DINOV2, MAE])
def test_every_setting_that_takes_the_place_of_theirs_exists(rows: tuple[tuple[str, str], ...]):
    objectives = [f"objective.{name}" for kind in (MaeConfig, DinoConfig) for name in fields(kind)]
    known = {*field_paths(RunConfig), *objectives}
    named = [each for _, ours in rows for each in re.findall(r"`([\w.]+)(?:=\w+)?`", ours)]
    assert len(named) >= len(rows)
    assert [each for each in named if each not in known] == []
    assert len({theirs for theirs, _ in rows}) == len(rows)


def fields(kind: type[MaeConfig] | type[DinoConfig]) -> list[str]:
    return list(kind.model_fields)


def test_every_setting_of_dino_that_the_released_config_has_is_in_the_table() -> None:
    text = " ".join(ours for _, ours in DINOV2)
    missing = [name for name in fields(DinoConfig) if f"`objective.{name}`" not in text]
    # Constants of their code, not keys of their config.
    assert missing == [
        *("name", "center_momentum", "student_temperature", "horizontal_flip", "vertical_flip"),
        *("jitter", "brightness", "contrast", "saturation", "hue", "grayscale", "solarize"),
        "released_blur",
    ]
