"""Evaluations that follow a run: of its end, and of each export if asked."""

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_vit.cli import check_words
from ssl_vit.errors import UserError
from ssl_vit.export import INFO_FILE
from ssl_vit.run_folder import RunFolder
from ssl_vit.training.checkpoint import complete_checkpoints, step_of
from ssl_vit_launch.batch import evaluation_parameters, queue_jobs
from ssl_vit_launch.submission import Submission

_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class CommandJob:
    """`ssl-vit …` as a job, pickled by submitit."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run it; its exit code is the job's."""
        code = subprocess.run(
            [sys.executable, "-m", "ssl_vit", *self.words], check=False
        ).returncode
        if code:
            raise SystemExit(code)


def words_of(text: str, target: Path) -> tuple[str, ...]:
    """`eval linear --train …` with what it evaluates in its place.

    Raises:
        UserError: It does not begin with `eval` and the name of an evaluation.
    """
    words = shlex.split(text.removeprefix("ssl-vit "))
    if len(words) < 2 or words[0] != "eval" or words[1].startswith("-"):
        raise UserError(
            f"--then '{text}' is no evaluation",
            "write for example  --then 'eval knn --train SHARDS/train --test SHARDS/val'",
        )
    return (*words[:2], str(target), *map(_absolute, words[2:]))


def _absolute(word: str) -> str:
    """A job begins in another folder."""
    return os.path.abspath(word) if os.path.exists(word) else word


def check_evaluation(text: str, run: Path) -> None:
    """Refuse what would fail when the run has ended.

    Raises:
        UserError: No such evaluation or option; names it.
    """
    check_words(words_of(text, run))


def submit_evaluations(submissions: Sequence[Submission]) -> None:
    """Queue the evaluations of the ends of runs: each begins when its run is complete, and goes if
    that failed.
    """
    first = submissions[0]
    training = first.job.partition("_")[0]
    is_array = "_" in first.job
    for text in first.then:
        _submit(
            first,
            [CommandJob(words_of(text, Path(each.run))) for each in submissions],
            f"{'aftercorr' if is_array else 'afterok'}:{training}",
        )


def _submit(submission: Submission, jobs: Sequence[CommandJob], dependency: str) -> None:
    parameters = evaluation_parameters(submission, dependency)
    queue_jobs(Path(submission.logs) / "then", parameters, jobs)


class ExportWatch:
    """Evaluates each export of a run as it appears, but for the last, which the end's evaluation
    takes.

    Args:
        submission: Of the run.
    """

    def __init__(self, submission: Submission) -> None:
        self.submission, self.folder = submission, RunFolder(submission.run)
        # Across starts: an export is evaluated once.
        self.record = self.folder.jobs / "evaluated.txt"

    def start(self) -> None:
        """Queue evaluations in the background, until :meth:`finish`."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="exports", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Queue those that are left; the run is complete."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._over.wait(_LOOK_SECONDS)
            try:
                self.take(lambda words: _submit(self.submission, [CommandJob(words)], ""))
            except (UserError, OSError) as error:
                # Training matters more: many clusters let no job queue another.
                print(f"exports are not evaluated as they appear: {error}", file=sys.stderr)
                return

    def take(self, evaluate: Callable[[tuple[str, ...]], object]) -> None:
        """Evaluate exports that have appeared, each once.

        Args:
            evaluate: Given the words of a command; what it raises leaves the export for next time.
        """
        known = self.record.read_text().splitlines() if self.record.is_file() else []
        last = self.folder.total_steps()
        for export in complete_checkpoints(self.folder.exports):
            is_whole = (export / INFO_FILE).is_file()
            if export.name in known or not is_whole or step_of(export) == last:
                continue
            for text in self.submission.then:
                evaluate(words_of(text, export))
            with self.record.open("a") as record:
                record.write(f"{export.name}\n")
