"""A request to a scheduler: `jobs/001/submission.json` in a run folder, next to its history, the
batch script and the logs.

Every submission has a folder of its own, because job ids restart at 1 when a cluster is set up
again.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from ssl_vit.config import Config, to_plain, validate
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.foreign import read_json
from ssl_vit.run.folder import RunFolder
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.history import (
    Event,
    History,
    read_earlier_crashes,
    read_earlier_events,
)

_FILE = "submission.json"


class Submission(Config):
    """Configuration of one job, which may be part of an array."""

    run: str
    """Run folder."""

    logs: str
    """Folder of the batch script and the logs; for an array, in the sweep's folder."""

    cluster: ClusterConfig

    nodes: int = Field(ge=1)
    """Nodes asked for."""

    min_nodes: int = Field(ge=1)
    """Minimum number of nodes that it may run on."""

    profile: bool = False
    """Whether the first process profiles a few steps."""

    code: str = ""
    """Folder of the snapshot that it runs; empty: the code installed when it starts."""

    then: tuple[str, ...] = ()
    """Evaluations of the finished run."""

    then_jobs: tuple[str, ...] = ()
    """SLURM's job ids of the evaluations."""

    at_exports: bool = False
    """Whether every export is evaluated too."""

    time: float = 0.0
    """Time when it was queued, in seconds since 1970."""

    job: str = ""
    """The scheduler's job id, `12_3` in an array; empty while it is being queued."""

    @property
    def title(self) -> str:
        """Name of the run folder, or of the sweep's folder."""
        return Path(self.logs).parents[1].name

    def log(self, rank: int) -> Path:
        """Log file of a process, across all starts."""
        return Path(self.logs) / f"{self.job}_{rank}_log.out"


def new_folder(jobs: Path) -> Path:
    """Folder for the next submission; not created."""
    numbers = [int(path.name) for path in jobs.glob("[0-9]*") if path.name.isdigit()]
    return jobs / f"{max(numbers, default=0) + 1:03d}"


def write_submission(folder: Path, submission: Submission) -> None:
    """Write it into its folder, atomically."""
    with replacing(folder / _FILE) as partial:
        partial.write_text(json.dumps(to_plain(submission), indent=1, ensure_ascii=False) + "\n")


def _folders(run: Path) -> list[Path]:
    """The submission folders of a run, oldest first."""
    files = RunFolder(run).jobs.glob(f"[0-9]*/{_FILE}")
    folders = [file.parent for file in files if file.parent.name.isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name))


def submissions_of(run: Path) -> list[Submission]:
    """All submissions of a run, oldest first.

    Raises:
        UserError: One cannot be read; names its file.
    """
    return [_read(folder / _FILE) for folder in _folders(run)]


def newest_submission(run: Path) -> Submission | None:
    """The newest submission of a run; None if it was never submitted."""
    found = submissions_of(run)
    return found[-1] if found else None


def last_submission(run: Path) -> Submission:
    """The newest submission of a run.

    Raises:
        UserError: It was never submitted.
    """
    found = newest_submission(run)
    if found is None:
        raise UserError(
            f"{run} was never submitted",
            "check the path; ssl-vit launch list FOLDER  lists the runs in a folder",
        )
    return found


def find_runs(folder: Path) -> list[Path]:
    """Run folders in a folder, sorted by name.

    Raises:
        UserError: There is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", "check the path")
    runs = sorted(_below(folder))
    if not runs:
        raise UserError(
            f"{folder} contains no run", "give the folder that contains your --run folders"
        )
    return runs


def _below(folder: Path) -> Iterator[Path]:
    if RunFolder(folder).config.is_file():
        yield folder  # its subfolders are not runs
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            yield from _below(path)


def history_of(run: Path) -> History:
    """History of the newest submission of a run."""
    folders = _folders(run)
    return History(folders[-1] if folders else RunFolder(run).jobs)


def events_of(run: Path) -> list[Event]:
    """All known events of a run, oldest first.

    Raises:
        UserError: A submission cannot be read; names its file.
    """
    jobs = RunFolder(run).jobs
    events = [event for folder in _folders(run) for event in History(folder).read()]
    events += read_earlier_events(jobs)
    for submission in submissions_of(run):
        index = submission.job.partition("_")[2] or "0"
        record = Path(submission.logs) / f"all_crashes_{index}"
        events += read_earlier_crashes(record, submission.job)
    return sorted(events, key=lambda event: event.time)


def _read(file: Path) -> Submission:
    return validate(Submission, read_json(file, "move its folder away"), str(file))
