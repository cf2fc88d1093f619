"""Kinds of input to fuzz: indexes, run folders, settings, cluster profiles, servers, disks, runs.

Images and tars are in fuzz_files.py.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from fuzz_trial import NASTY, Kind, Trial, change_file, judge, make_set, run

from ssl_vit.config import field_paths
from ssl_vit.data import fetch
from ssl_vit.run.config import RunConfig


class Indexes(Kind):
    """`index.json` and `samples.npy` of a data set, read by `plan`, `shards check` and `shards
    reshard`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_set(folder)

    def trial(self, rng: random.Random) -> Trial:
        target = self.folder / "changed"
        for old in (target, self.folder / "out"):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(self.folder / "sets" / "train", target)
        change = change_file(target / rng.choice(("index.json", "index.json", "samples.npy")), rng)
        commands = (
            ["plan", "mae_vits16", f"data.shards={target}"],
            ["shards", "check", str(target), "--workers", "1"],
            ["shards", "reshard", str(target), str(self.folder / "out"), "--workers", "1"],
        )
        words = rng.choice(commands)
        return Trial(change, list(words), may_be_1=words[1] in ("check", "mae_vits16"))


class RunFolders(Kind):
    """The files of a run folder, read by `launch` and `plan`."""

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
        change = change_file(rng.choice(files), rng)
        words = rng.choice(
            (
                ["launch", "status", str(runs / "run")],
                ["launch", "list", str(runs)],
                ["launch", "logs", str(runs / "run")],
                ["plan", str(runs / "run" / "config.yaml")],
            )
        )
        return Trial(change, words, may_be_1=words[0] == "plan")


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
        change = change_file(file, rng)
        words = ["launch", "submit", "mae_vits16", "--run", str(self.folder / "run"), "--dry-run"]
        return Trial(change, [*words, "--cluster", str(file), "data.source=synthetic"])


class Servers(Kind):
    """A faulty server: a data set read from it must arrive complete or be refused."""

    # Faults that a retry overcomes, and faults that it does not.
    PASSING = ("refuse", "500", "cut", "short", "long", "hang", "other bytes", "endless")
    FINAL = ("403", "html")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_set(folder)
        fetch._FIRST_PAUSE, fetch._STALL_SECONDS = 0.01, 2.0

    def trial(self, rng: random.Random) -> Trial:
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        os.environ["SSL_VIT_CACHE"] = str(self.folder / "cache")
        faulty = rng.choice(("index.json", "samples.npy", "shard-000000.tar"))
        is_final = rng.random() < 0.2
        # An index is requested at most three times, and the machine itself may stall.
        faults = rng.choices(self.PASSING, k=rng.randrange(2 if faulty == "index.json" else 3))
        faults += [rng.choice(self.FINAL)] if is_final else []
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.faulty_server", self.folder / "sets/train"),
                *(faulty, *faults),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        url = server.stdout.readline().strip()

        def check(code: int) -> str:
            server.kill()
            server.wait()
            # An index has no checksum, so wrong bytes do not cause a retry.
            is_other = faulty == "index.json" and {"other bytes", "long"} & set(faults)
            lenient = is_final or is_other
            return "" if lenient or code == 0 else "the data set did not arrive complete"

        words = ["shards", "check", url, "--workers", "1"]
        return Trial(f"{faulty}: {', '.join(faults)}", words, may_be_1=is_final, check=check)


class Runs(Kind):
    """A run folder damaged between two starts: the run resumes to the same losses, or reports an
    error.
    """

    seconds, num_bytes = 120, 64 * 10**9
    SETTINGS: Sequence[str] = (
        *("schedule.length=6", "schedule.warmup=1", "checkpoint.every_steps=2"),
        *("export.every_steps=2", "log.panel_every_steps=2", "log.every_steps=1"),
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        make_set(folder)
        run(*self.words(folder / "unbroken"))
        self.expected = losses_in(folder / "unbroken")
        self.half = folder / "half"
        shutil.copytree(folder / "unbroken", self.half)
        for part in ("checkpoints", "exports"):
            shutil.rmtree(self.half / part / "step_00000006")

    def words(self, target: Path) -> list[str]:
        """Arguments of the training command."""
        shards = f"data.shards={self.folder / 'sets' / 'train'}"
        words = ["pretrain", "mae_vits16", "--smoke", "--run", str(target), shards]
        return [*words, "engine.workers=0", *self.SETTINGS]

    def trial(self, rng: random.Random) -> Trial:
        target = self.folder / "run"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.half, target)
        files = [
            path for path in sorted(target.rglob("*")) if path.is_file() and path.stat().st_size
        ]
        change = change_file(rng.choice(files), rng)

        def check(code: int) -> str:
            found, expected = losses_in(target), self.expected
            if change.startswith("metrics.jsonl"):  # damaged lines stay lost
                found, expected = found[-2:], expected[-2:]
            if code == 0 and found != expected:
                return f"losses {found}, not {expected} as in the uninterrupted run"
            return ""

        return Trial(change, self.words(target), check=check)


class Disks(Runs):
    """A disk that fills up at any point of a run; with more space, the run resumes to the same
    losses. Needs permission to mount.
    """

    def trial(self, rng: random.Random) -> Trial:
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        size = rng.randrange(50, 6000)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        subprocess.run(mount, check=True)

        def check(code: int) -> str:
            try:
                subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
                again, output = self.attempt(self.words(disk / "run"))
                if problem := judge(again, output):
                    return f"with more space: {problem}"
                found = losses_in(disk / "run")
                return "" if found == self.expected else f"losses {found}, not {self.expected}"
            finally:
                subprocess.run(["umount", "-l", str(disk)], check=False)

        return Trial(f"a disk of {size} kB", self.words(disk / "run"), check=check)


def losses_in(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of a run's metrics."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    return [(line["step"], line["loss"]) for line in values]
