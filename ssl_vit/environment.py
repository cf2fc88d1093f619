"""What happened to run: the machine, the code and the data of every start, in
`environment.json`.
"""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ssl_vit
from ssl_vit.errors import UserError
from ssl_vit.files import replacing

PACKAGES = ("torch", "deepspeed", "timm", "webdataset", "submitit", "numpy")


def check_same_data(file: Path, fingerprint: str) -> None:
    """Refuse to continue a run on other data.

    Raises:
        UserError: The run began with shards of another fingerprint.
    """
    began_with = _read(file).get("data_fingerprint", fingerprint)
    if began_with != fingerprint:
        raise UserError(
            f"run {file.parent} began with data {began_with}, these shards are {fingerprint}",
            "give the shards it began with, or another --run folder",
        )


def record_start(file: Path, fingerprint: str, world_size: int, start_step: int) -> None:
    """Add this start to the run's history."""
    environment = _read(file) or {"data_fingerprint": fingerprint, "starts": []}
    environment["starts"].append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "start_step": start_step,
            "world_size": world_size,
            "command": sys.argv,
            "host": platform.node(),
            "python": platform.python_version(),
            "versions": {"ssl-vit": ssl_vit.__version__, **_versions()},
            **_commit(),
        }
    )
    with replacing(file) as partial:
        partial.write_text(json.dumps(environment, indent=1) + "\n")


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"cannot read {file}: {error}", "mend it, or use another --run") from None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any]:
    """Commit and whether files differ from it; empty where the code is not in a git checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "dirty": bool(status.strip())}
