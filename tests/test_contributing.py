"""The example in CONTRIBUTING.md is code: it is read from there, added to a copy of the package and
run through `ssl-vit pretrain --smoke`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.command_line import ENVIRONMENT, PATIENCE, losses

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def new_files() -> dict[str, str]:
    """Path → content, of every python block; its first line is the path."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL)
    return dict(blocks)


def changed_lines() -> dict[str, list[str]]:
    """Path → the lines of its part of the diff block."""
    (block,) = re.findall(r"```diff\n(.*?)```", TEXT, flags=re.DOTALL)
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in block.splitlines():
        if line.startswith("--- "):
            lines = found.setdefault(line.removeprefix("--- "), [])
        else:
            lines.append(line)
    return found


def apply(text: str, lines: list[str]) -> str:
    """Insert the added lines behind the context before them, or before that behind them."""
    kept, place = text.splitlines(), 0
    for position, line in enumerate(lines):
        if line.startswith("+"):
            kept.insert(place, line[1:])
            place += 1
        else:
            place = find(kept, line[1:], place) + 1
            after = lines[position + 1 : position + 2]
            if after and not after[0].startswith("+"):
                assert kept[place].startswith(after[0][1:]), f"CONTRIBUTING.md is old: {after[0]}"
    return "\n".join(kept) + "\n"


def find(lines: list[str], context: str, start: int) -> int:
    for place in range(start, len(lines)):
        if lines[place].startswith(context):
            return place
    raise AssertionError(f"CONTRIBUTING.md names a line that is not there any more: {context}")


def package_with_the_example(folder: Path) -> Path:
    shutil.copytree(ROOT / "ssl_vit", folder / "ssl_vit")
    for path, content in new_files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    for path, lines in changed_lines().items():
        (folder / path).write_text(apply((folder / path).read_text(), lines))
    return folder


def test_the_example_trains_through_pretrain_smoke(tmp_path: Path):
    package, run = package_with_the_example(tmp_path / "package"), tmp_path / "run"
    path = os.pathsep.join([str(package), *(str(ROOT / room) for room in ("eval", "data_prep"))])
    words = (
        "pretrain",
        "denoise_small_data",
        "--smoke",
        "--run",
        str(run),
        "data.source=synthetic",
    )
    done = subprocess.run(
        [sys.executable, "-m", "ssl_vit", *words],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    found = [loss for _, loss, _ in losses(run)]
    assert len(found) == 20
    assert found[-1] < found[0]
    assert (run / "exports" / "step_00000020" / "backbone.safetensors").is_file()
    plan = (run / "plan.json").read_text()
    assert '"step_flops_per_image"' in plan


def test_every_place_that_names_an_objective_is_on_the_page():
    """Files of the packages that name the classes of SimMIM, outside of its own folder."""
    places = {
        str(file.relative_to(ROOT))
        for room in ("ssl_vit", "launch", "data_prep", "eval")
        for file in (ROOT / room).rglob("*.py")
        if "SimMim" in file.read_text() and "simmim" not in file.parts
    }
    on_the_page = set(changed_lines())
    assert places == on_the_page
