"""The wheel puts exactly four names into site-packages, none of them generic."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_ships_four_packages_and_nothing_else(tmp_path: Path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    names = {name.split("/")[0] for name in files}
    packages = {name for name in names if not name.endswith(".dist-info")}
    assert packages == {"ssl_vit", "ssl_vit_launch", "ssl_vit_data_prep", "ssl_vit_eval"}
    # Tells type checkers to read the annotations (PEP 561).
    assert {f"{package}/py.typed" for package in packages} <= set(files)
