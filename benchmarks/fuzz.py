"""Damaged and hostile files given to the commands, for a while: every one ends as it should.

python benchmarks/fuzz.py --seconds 60 --seed 1 [--kinds index,words]

Each trial changes one file or word at random and runs one command in a process of its own. It must
end with 0, 1 where the help says so, or 2 with an error and a fix of one line each, within 20
seconds and 2 GB, and without a traceback. Prints a table, and of every failure the change and the
end of what was said; exits with 1 where there was one. The same seed makes the same changes.
"""

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ssl_vit import cli
from ssl_vit.config import field_paths
from ssl_vit.run_config import RunConfig

SECONDS, BYTES = 20, 2 * 10**9
# What the children would each import again.
PRELOADED = (
    *("ssl_vit.commands", "ssl_vit.forecast", "ssl_vit.pretrain", "ssl_vit.data.sources"),
    *("ssl_vit_data_prep.commands", "ssl_vit_data_prep.check", "ssl_vit_data_prep.reshard"),
    *("ssl_vit_launch.commands", "ssl_vit_launch.listing", "ssl_vit_launch.submit"),
    *("rich.table", "webdataset"),
)
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, 1e-320),
    *("", "x", "\0", "\n", "a\nb", "é", "../..", "%j", "[/y]", "${x}", "${oc.env:HOME}"),
    "9" * 5000,
    *([], {}, [1], [[1]], {"a": 1}, {"": None}, [None] * 3, "2026-11-29", "1e999", "x" * 100_000),
)
RAW = (b"", b"\0" * 100, b"[" * 100_000, b"\xff\xfe", b"{}", b"[]", b"null", b'{"a": NaN}', b"a: [")


@dataclass
class Trial:
    """One command on something changed."""

    change: str
    words: list[str]
    may_be_1: bool = False
    """Whether its help has an exit code of 1."""


@dataclass
class Found:
    """What became of the trials of a kind."""

    codes: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)


class Kind:
    """Something that commands are given.

    Args:
        folder: For it alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def trial(self, rng: random.Random) -> Trial:
        """Make the next one."""
        raise NotImplementedError


def change_json(values: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy with one value replaced, removed or repeated, and what was done."""
    values = json.loads(json.dumps(values))
    place, path = values, ""
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        path += f"/{key}"
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            place = inner
            continue
        if rng.random() < 0.15:
            del place[key]
            return values, f"{path} removed"
        place[key] = rng.choice(NASTY)
        return values, f"{path}={str(place[key])[:30]!r}"
    return rng.choice(NASTY), "the whole replaced"


def change_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A copy with some bytes changed, cut off or repeated, and what was done."""
    choice = rng.randrange(4)
    if choice == 0:
        raw = rng.choice(RAW)
        return raw, f"all replaced by {raw[:12]!r}"
    place = rng.randrange(len(content) + 1)
    if choice == 1:
        return content[:place], f"cut at {place}"
    if choice == 2:
        return content[:place] + content[place // 2 :], f"repeated at {place}"
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 10)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed), "bytes changed"


def change_file(file: Path, rng: random.Random) -> str:
    """Change a file by what it holds; what was done."""
    content = file.read_bytes()
    if file.suffix in (".json", ".yaml", ".jsonl") and rng.random() < 0.6:
        if file.suffix == ".yaml":
            values, said = change_json(yaml.safe_load(content), rng)
            text = yaml.safe_dump(values)
        elif file.suffix == ".json":
            values, said = change_json(json.loads(content), rng)
            text = json.dumps(values)
        else:
            lines = content.decode().splitlines()
            place = rng.randrange(len(lines))
            values, said = change_json(json.loads(lines[place]), rng)
            lines[place] = json.dumps(values)
            text = "\n".join(lines) + "\n"
        file.write_text(text)
        return f"{file.name}: {said}"
    changed, said = change_bytes(content, rng)
    file.write_bytes(changed)
    return f"{file.name}: {said}"


def make_set(folder: Path) -> None:
    """Shards of 60 images of two classes, in two sets."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    words = ("--shard-bytes", "40kB", "--val-fraction", "0.25")
    run("shards", "pack", folder / "images", folder / "sets", *words)


def run(*words: str | Path) -> None:
    """A command that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "ssl_vit", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"ssl-vit {' '.join(map(str, words))} failed:\n{done.stderr}")


class Indexes(Kind):
    """`index.json` and `samples.npy` of a set, read by training, checks and resharding."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_set(folder)

    def trial(self, rng: random.Random) -> Trial:
        target = self.folder / "changed"
        for old in (target, self.folder / "out"):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(self.folder / "sets" / "train", target)
        said = change_file(target / rng.choice(("index.json", "index.json", "samples.npy")), rng)
        commands = (
            ["plan", "mae_vits16", f"data.shards={target}"],
            ["shards", "check", str(target), "--workers", "1"],
            ["shards", "reshard", str(target), str(self.folder / "out"), "--workers", "1"],
        )
        words = rng.choice(commands)
        return Trial(said, list(words), may_be_1=words[1] in ("check", "mae_vits16"))


class RunFolders(Kind):
    """The files of a run folder, read by its status, by lists and by evaluations."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_set(folder)
        run(
            *("pretrain", "mae_vits16", "--smoke", "--run", folder / "run"),
            *(f"data.shards={folder / 'sets' / 'train'}", "schedule.length=4", "schedule.warmup=1"),
            *("checkpoint.every_steps=2", "export.every_steps=2"),
        )
        sets = ("--train", folder / "sets" / "train", "--test", folder / "sets" / "val")
        run("eval", "knn", folder / "run", *sets)

    def trial(self, rng: random.Random) -> Trial:
        runs = self.folder / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(self.folder / "run", runs / "run")
        files = [
            path for path in sorted(runs.rglob("*")) if path.suffix in (".json", ".jsonl", ".yaml")
        ]
        said = change_file(rng.choice(files), rng)
        words = rng.choice(
            (
                ["launch", "status", str(runs / "run")],
                ["launch", "list", str(runs)],
                ["launch", "logs", str(runs / "run")],
                ["plan", str(runs / "run" / "config.yaml")],
            )
        )
        return Trial(said, words, may_be_1=words[0] == "plan")


class Words(Kind):
    """Settings on the command line."""

    PATHS = tuple(field_paths(RunConfig))

    def trial(self, rng: random.Random) -> Trial:
        value = rng.choice(NASTY)
        text = value if isinstance(value, str) else json.dumps(value)
        text = text[:10_000].replace("\0", "\\0")
        word = f"{rng.choice(self.PATHS)}={text}"
        recipe = rng.choice(("mae_vits16", "dinov2_vitl16"))
        return Trial(word[:80], ["plan", recipe, word], may_be_1=True)


PROFILE = {
    "partition": "gpu",
    "account": "lab",
    "processes_per_node": 8,
    "cpus_per_process": 12,
    "timeout_minutes": 120,
    "warn_seconds": 120,
    "environment": {"A": "b"},
    "setup": ["module load cuda"],
    "network_interface": "ib0",
}


class Profiles(Kind):
    """Cluster profiles."""

    def trial(self, rng: random.Random) -> Trial:
        file = self.folder / "profile.yaml"
        file.write_text(yaml.safe_dump(PROFILE))
        said = change_file(file, rng)
        words = ["launch", "submit", "mae_vits16", "--run", str(self.folder / "run"), "--dry-run"]
        return Trial(said, [*words, "--cluster", str(file), "data.source=synthetic"])


KINDS: dict[str, Callable[[Path], Kind]] = {
    "index": Indexes,
    "run": RunFolders,
    "words": Words,
    "profile": Profiles,
}


def attempt(trial: Trial, log: Path) -> tuple[int, str]:
    """Run a trial in a child; its exit code (negative: its signal), and what it said."""
    pid = os.fork()
    if pid == 0:
        _run_child(trial, log)
    _, status = os.waitpid(pid, 0)
    said = log.read_text(encoding="utf-8", errors="replace")
    return os.waitstatus_to_exitcode(status), said


def _run_child(trial: Trial, log: Path) -> None:
    code = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        sys.argv = ["ssl-vit", *trial.words]
        cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def judge(trial: Trial, code: int, said: str) -> str:
    """What is wrong with an end; empty if it is as it should be."""
    lines = said.strip().splitlines()
    if "Traceback (most recent call last)" in said:
        return lines[-1][:200]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code not in (0, 2) and not (code == 1 and trial.may_be_1):
        return f"exit code {code}"
    if code == 2 and not (
        len(lines) >= 2 and lines[-2].startswith("error: ") and lines[-1].startswith("fix:   ")
    ):
        return f"exit code 2 without its two lines: {lines[-2:]}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run for a while; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    asked = parser.parse_args(arguments)
    names = asked.kinds.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        parser.error(f"no kind {unknown[0]}; there are {', '.join(KINDS)}")
    for module in PRELOADED:
        importlib.import_module(module)
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            kind = KINDS[name](Path(scratch, name))
            found[name] = _fuzz(name, kind, asked.seconds / len(names), asked.seed, Path(scratch))
    print(f"{'kind':10} {'trials':>7} {'exit 0':>7} {'1':>5} {'2':>6} {'slowest':>8} {'failed':>7}")
    for name, one in found.items():
        codes = one.codes
        print(
            f"{name:10} {codes.total():7} {codes[0]:7} {codes[1]:5} {codes[2]:6} "
            f"{one.slowest:7.1f}s {len(one.failures):7}"
        )
    return int(any(one.failures for one in found.values()))


def _fuzz(name: str, kind: Kind, seconds: float, seed: int, scratch: Path) -> Found:
    found, rng, end = Found(), random.Random(f"{name} {seed}"), time.monotonic() + seconds
    said_of: Counter[str] = Counter()
    while time.monotonic() < end:
        trial = kind.trial(rng)
        began = time.monotonic()
        code, said = attempt(trial, scratch / "said")
        found.slowest = max(found.slowest, time.monotonic() - began)
        found.codes[code] += 1
        if problem := judge(trial, code, said):
            found.failures.append(problem)
            said_of[problem[:60]] += 1
            if said_of[problem[:60]] <= 2:
                print(f"FAILED {name}: {trial.change}: {' '.join(trial.words[:2])}: {problem}")
        if time.monotonic() - began > SECONDS / 4:
            print(f"slow {name}: {trial.change}: {' '.join(trial.words[:2])}")
    return found


if __name__ == "__main__":
    sys.exit(main())
