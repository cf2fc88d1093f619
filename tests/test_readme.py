"""The README's map of the folders and the architecture's walk through them tell the truth."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| `([^`]+)` \| (\d+) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE
)


def test_the_map_names_every_package():
    named = {place.split("/")[0] for place, _ in ROWS}
    assert named == {"ssl_vit", "data_prep", "eval", "launch", "benchmarks", "tests"}


@pytest.mark.parametrize(("place", "lines"), ROWS)
def test_line_counts_are_right_within_a_tenth(place: str, lines: str):
    files = ROOT.glob(place) if "*" in place else (ROOT / place).rglob("*.py")
    counted = sum(len(file.read_text().splitlines()) for file in files)
    assert counted == pytest.approx(int(lines), rel=0.1)


WALK = re.findall(
    r"^\| (\w+) \| `([^`]+)` \| `([^`]+)` \|",
    (ROOT / "docs" / "architecture.md").read_text(),
    flags=re.MULTILINE,
)


def test_one_image_walks_from_bytes_to_features():
    rooms = [room for room, _, _ in WALK]
    assert rooms[0] == "data_prep"
    assert rooms[-1] == "eval"
    assert {"data", "objectives", "models", "training", "exports"} < set(rooms)


@pytest.mark.parametrize(("room", "file", "function"), WALK)
def test_every_station_of_the_walk_exists(room: str, file: str, function: str):
    outer = {"data_prep": "data_prep/ssl_vit_data_prep", "eval": "eval/ssl_vit_eval"}
    text = (ROOT / outer.get(room, f"ssl_vit/{room}") / file).read_text()
    for name in function.split("."):
        assert re.search(rf"^ *(def|class) {name}\b", text, flags=re.MULTILINE)
