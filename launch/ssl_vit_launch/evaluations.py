"""Evaluations that follow a run: of the finished run, and of each export if asked for."""

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
from ssl_vit_launch.submission import Submission, events_of, history_of, last_submission

_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class CommandJob:
    """An `ssl-vit` command as a job, pickled by submitit."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run it; the job ends with its exit code."""
        code = subprocess.run(
            [sys.executable, "-m", "ssl_vit", *self.words], check=False
        ).returncode
        if code:
            raise SystemExit(code)


def words_of(text: str, target: Path) -> tuple[str, ...]:
    """The words of `eval linear --train …` with the run or export to evaluate inserted.

    Raises:
        UserError: It does not begin with `eval` and the name of an evaluation, or a quote is open.
    """
    try:
        words = shlex.split(text.removeprefix("ssl-vit "))
    except ValueError as error:
        raise UserError(f"--then '{text}': {error}", "close the quotes") from None
    if len(words) < 2 or words[0] != "eval" or words[1].startswith("-") or "--help" in words:
        raise UserError(
            f"--then '{text}' is not an evaluation",
            "for example  --then 'eval knn --train SHARDS/train --test SHARDS/val'",
        )
    return (*words[:2], str(target), *map(_absolute, words[2:]))


def _absolute(word: str) -> str:
    """An existing path made absolute, since a job may start in another folder."""
    return os.path.abspath(word) if os.path.exists(word) else word


def check_evaluation(text: str, run: Path) -> None:
    """Check an evaluation now, rather than when the run has ended.

    Raises:
        UserError: The evaluation, an option or a shard set does not exist; names it.
    """
    words = words_of(text, run)
    check_words(words)
    for option, value in itertools.pairwise(words):
        if option in ("--train", "--test"):
            open_shards(value)


def submit_evaluations(submissions: Sequence[Submission]) -> list[tuple[str, ...]]:
    """Queue the evaluations of finished runs: each starts when its run is complete, and is dropped
    if the run fails.

    Returns:
        For each submission, the job ids of its evaluations.
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
    """Evaluates each export of a run when it appears, except the last, which the evaluation of the
    finished run covers.

    Args:
        submission: The run's submission.
    """

    def __init__(self, submission: Submission) -> None:
        self.submission, self.folder = submission, RunFolder(submission.run)
        # Across starts and submissions, so that an export is evaluated once.
        events = events_of(self.folder.root)
        self._evaluated = {event.text for event in events if event.kind == "evaluated"}

    def start(self) -> None:
        """Queue evaluations in the background until :meth:`finish`."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="exports", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Queue the remaining ones, once the run is complete."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._over.wait(_POLL_SECONDS)
            try:
                self.take(self._queue)
            except (subprocess.CalledProcessError, OSError):
                # Training matters more; many clusters do not let a job queue another.
                print(
                    "cannot queue evaluations from this job: exports are not evaluated as they "
                    "appear",
                    file=sys.stderr,
                    flush=True,
                )
                return

    def _queue(self, words: Sequence[str]) -> None:
        # In a separate process: queueing changes the environment that training reads in this one.
        command = [sys.executable, "-m", "ssl_vit_launch.evaluations", self.submission.run, *words]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def take(self, evaluate: Callable[[tuple[str, ...]], object]) -> None:
        """Evaluate new exports, each once.

        Args:
            evaluate: Called with the words of a command; if it raises, the export is tried again
                next time.
        """
        last = self.folder.total_steps()
        for export in complete_checkpoints(self.folder.exports):
            is_complete = (export / INFO_FILE).is_file()
            if export.name in self._evaluated or not is_complete or step_of(export) == last:
                continue
            for text in self.submission.then:
                evaluate(words_of(text, export))
            self._evaluated.add(export.name)
            history_of(self.folder.root).add("evaluated", self.submission.job, text=export.name)


def main(run: Path, words: Sequence[str]) -> None:
    """Queue one evaluation from inside the run's job."""
    try:
        _submit(last_submission(run), [CommandJob(tuple(words))], "")
    except UserError as error:
        sys.exit(f"{error.problem}; {error.remedy}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
