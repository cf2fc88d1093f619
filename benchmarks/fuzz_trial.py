"""One trial of the fuzzing: a change, a command in its own process, and a check of how it ended."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ssl_vit import cli

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, 1e-320),
    *("", "x", "\0", "\n", "a\nb", "é", "../..", "%j", "[/y]", "${x}", "${oc.env:HOME}"),
    "9" * 5000,
    *([], {}, [1], [[1]], {"a": 1}, {"": None}, [None] * 3, "2026-11-29", "1e999", "x" * 100_000),
)
RAW = (b"", b"\0" * 100, b"[" * 100_000, b"\xff\xfe", b"{}", b"[]", b"null", b'{"a": NaN}', b"a: [")


@dataclass
class Trial:
    """One command on changed input."""

    change: str
    """Description of the change."""
    words: list[str]
    """Arguments of `ssl-vit`."""
    may_be_1: bool = False
    """Whether the command's help allows exit code 1."""
    check: Callable[[int], str] = lambda code: ""
    """Maps the exit code to a problem with the command's output files; empty if there is none."""


class Kind:
    """A kind of input to fuzz.

    Args:
        folder: Its own folder, created here.
    """

    seconds, num_bytes = 20, 2 * 10**9
    """Limits per command: seconds, and bytes of address space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def trial(self, rng: random.Random) -> Trial:
        """Draw the next trial."""
        raise NotImplementedError

    def attempt(self, words: list[str]) -> tuple[int, str]:
        """Run a command in a child process; its exit code (negative: signal), and its output."""
        log = self.folder / "output"
        pid = os.fork()
        if pid == 0:
            self._run_child(words, log)
        _, status = os.waitpid(pid, 0)
        output = log.read_text(encoding="utf-8", errors="replace")
        return os.waitstatus_to_exitcode(status), output

    def _run_child(self, words: list[str], log: Path) -> None:
        code = 99
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_AS, (self.num_bytes, self.num_bytes))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(self.seconds)
            sys.argv = ["ssl-vit", *words]
            cli.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def judge(code: int, output: str, may_be_1: bool = False) -> str:
    """The problem with how a command ended; empty if there is none."""
    lines = output.strip().splitlines()
    if "Traceback (most recent call last)" in output:
        place = next((line for line in reversed(lines) if line.startswith('  File "')), "")
        return f"{lines[-1][:200]} at{place.rpartition('/')[2]}"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code not in (0, 2) and not (code == 1 and may_be_1):
        return f"exit code {code}"
    if code == 2 and not (
        len(lines) >= 2 and lines[-2].startswith("error: ") and lines[-1].startswith("fix:   ")
    ):
        return f"exit code 2 without error and fix: {lines[-2:]}"
    return ""


def change_json(values: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy with one value replaced or removed, and what was changed."""
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
    return rng.choice(NASTY), "everything replaced"


def change_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A copy with some bytes changed, cut off or repeated, and what was changed."""
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
    """Change a file according to its type; returns what was changed."""
    content = file.read_bytes()
    if file.suffix in (".json", ".yaml", ".jsonl") and rng.random() < 0.6:
        if file.suffix == ".yaml":
            values, change = change_json(yaml.safe_load(content), rng)
            text = yaml.safe_dump(values)
        elif file.suffix == ".json":
            values, change = change_json(json.loads(content), rng)
            text = json.dumps(values)
        else:
            lines = content.decode().splitlines()
            place = rng.randrange(len(lines))
            values, change = change_json(json.loads(lines[place]), rng)
            lines[place] = json.dumps(values)
            text = "\n".join(lines) + "\n"
        file.write_text(text)
        return f"{file.name}: {change}"
    changed, change = change_bytes(content, rng)
    file.write_bytes(changed)
    return f"{file.name}: {change}"


def make_set(folder: Path) -> None:
    """Pack shards of 60 images of two classes, split into train and val."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    words = ("--shard-bytes", "40kB", "--val-fraction", "0.25")
    run("shards", "pack", folder / "images", folder / "sets", *words)


def run(*words: str | Path) -> None:
    """Run an `ssl-vit` command that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "ssl_vit", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"ssl-vit {' '.join(map(str, words))} failed:\n{done.stderr}")
