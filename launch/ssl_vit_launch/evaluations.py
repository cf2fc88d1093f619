"""Evaluations that follow a run: of its end, and of each export if asked."""

import itertools
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_vit.cli import check_words
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import INFO_FILE
from ssl_vit.run.folder import RunFolder
from ssl_vit.training.checkpoint import complete_checkpoints, step_of
from ssl_vit_launch.batch import evaluation_logs, evaluation_parameters, queue_jobs
from ssl_vit_launch.submission import Submission, last_submission

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
    try:
        words = shlex.split(text.removeprefix("ssl-vit "))
    except ValueError as error:
        raise UserError(f"--then '{text}': {error}", "close the quotes in it") from None
    if len(words) < 2 or words[0] != "eval" or words[1].startswith("-") or "--help" in words:
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
        UserError: No such evaluation or option, or shards that are not there; names it.
    """
    words = words_of(text, run)
    check_words(words)
    for option, value in itertools.pairwise(words):
        if option in ("--train", "--test"):
            open_shards(value)


def submit_evaluations(submissions: Sequence[Submission]) -> list[tuple[str, ...]]:
    """Queue the evaluations of the ends of runs: each begins when its run is complete, and goes if
    that failed.

    Returns:
        For each submission, the ids of its evaluations' jobs.
    """
    first = submissions[0]
    training = first.job.partition("_")[0]
    kind = "aftercorr" if "_" in first.job else "afterok"
    ids = [
        _submit(
            first,
            [CommandJob(words_of(text, Path(each.run))) for each in submissions],
            f"{kind}:{training}",
        )
        for text in first.then
    ]
    return [tuple(each[place] for each in ids) for place in range(len(submissions))]


def _submit(submission: Submission, jobs: Sequence[CommandJob], dependency: str) -> list[str]:
    parameters = evaluation_parameters(submission, dependency)
    return queue_jobs(Path(evaluation_logs(submission)), parameters, jobs)


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
                self.take(self._queue)
            except (subprocess.CalledProcessError, OSError):
                # Training matters more: many clusters let no job queue another.
                print("exports are not evaluated as they appear", file=sys.stderr, flush=True)
                return

    def _queue(self, words: Sequence[str]) -> None:
        # A process of its own: queueing changes the environment, which training reads here.
        command = [sys.executable, "-m", "ssl_vit_launch.evaluations", self.submission.run, *words]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

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


def main(run: Path, words: Sequence[str]) -> None:
    """Queue one evaluation, from inside the run's job."""
    try:
        _submit(last_submission(run), [CommandJob(tuple(words))], "")
    except UserError as error:
        sys.exit(f"{error.problem}; {error.remedy}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
