"""The machine, the code and the data of every start of a run, kept in `environment.json`."""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ssl_vit
from ssl_vit.data.index_file import MOST_INDEX_BYTES
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.subset import SubsetOfShards
from ssl_vit.errors import UserError
from ssl_vit.files import readable, replacing
from ssl_vit.foreign import Document, checked, read_json

PACKAGES = ("torch", "deepspeed", "timm", "webdataset", "submitit", "numpy")


def describe_data(shards: ShardSet | None) -> dict[str, Any]:
    """What a run records about its data, enough to report later what differs. None: synthetic."""
    if shards is None:
        return {"fingerprint": "synthetic", "num_samples": 0, "shards": []}
    return {
        "fingerprint": shards.fingerprint,
        "kept": shards.digest_of_kept if isinstance(shards, SubsetOfShards) else "",
        "num_samples": shards.num_samples,
        "shards": [
            f"{shard.name} {shard.num_samples} {shard.sha256[:16]}" for shard in shards.shards
        ],
    }


def check_same_data(file: Path, data: dict[str, Any]) -> None:
    """Refuse to continue a run on other data.

    Args:
        file: The run's `environment.json`.
        data: From :func:`describe_data`.

    Raises:
        UserError: The run was started on shards with another fingerprint; says what differs.
    """
    began_with = _read(file).get("data", data)
    if began_with["fingerprint"] != data["fingerprint"]:
        raise UserError(
            f"run {file.parent} was started on other data: {_difference(began_with, data)}",
            "use the shards it was started on, or another --run folder",
        )
    kept = [each.get("kept") for each in (began_with, data)]
    if all(kept) and kept[0] != kept[1]:
        raise UserError(
            f"run {file.parent} was started with other images held out: its shards now have other "
            "groups",
            "use the index it was started on, or another --run folder",
        )


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    counts = [
        f"{data['num_samples']:,} images in {len(data['shards']):,} shards" for data in (then, now)
    ]
    pairs = enumerate(zip_longest(then["shards"], now["shards"]))
    changed = [(number, was, here) for number, (was, here) in pairs if was != here]
    if not changed:  # the same tars, but an index that selects other images
        return f"{counts[0]}; the shards are the same, but their index now selects other images"
    number, was, here = changed[0]
    names = [entry.rsplit(" ", 2)[0] if entry else "nothing" for entry in (was, here)]
    first = f"{names[0]} has different content" if names[0] == names[1] else " → ".join(names)
    more = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
    return f"{counts[0]} then, {counts[1]} now; shard number {number}: {first}{more}"


def record_start(file: Path, data: dict[str, Any], world_size: int, start_step: int) -> None:
    """Add this start to the run's history.

    Args:
        file: The run's `environment.json`.
        data: From :func:`describe_data`.
    """
    environment = _read(file) or {"data": data, "starts": []}
    environment["starts"].append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "start_step": start_step,
            "world_size": world_size,
            "command": [readable(word) for word in sys.argv],
            "host": platform.node(),
            "python": platform.python_version(),
            "versions": {"ssl-vit": ssl_vit.__version__, **_versions()},
            **commit_of(Path(__file__).parent),
        }
    )
    with replacing(file) as partial:
        partial.write_text(json.dumps(environment, indent=1) + "\n")


class _Data(Document):
    fingerprint: str
    kept: str = ""
    num_samples: int
    shards: list[str]


class _Environment(Document):
    data: _Data
    starts: list[dict[str, Any]]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    remedy = "restore it, or use another --run folder"
    values = read_json(file, remedy, MOST_INDEX_BYTES)
    checked(_Environment, values, str(file), remedy)
    return values


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit_of(folder: Path) -> dict[str, Any]:
    """Commit and whether files differ from it; empty if the folder is not in a git checkout."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit, "dirty": bool(status.strip())}
