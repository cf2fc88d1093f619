"""The README's map of the folders tells the truth."""

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
