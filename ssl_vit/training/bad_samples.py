"""Samples that could not be decoded: listed in the run folder, every update's once, and limited."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ssl_vit.data.bad_sample import BadSample
from ssl_vit.data.config import DataConfig
from ssl_vit.errors import UserError
from ssl_vit.training.metrics_file import AppendedLines, count_until

# A share of the first few samples says nothing about the rest.
_FEWEST_SEEN = 1_000


class BadSamples:
    """`bad_samples.jsonl` of a run; every rank counts, the first one writes.

    Args:
        file: Created with the first bad sample; lines of updates that will be made again are cut.
        start_step: Updates already made.
        data: Batch and limit.
        is_first: Whether this rank writes.
    """

    def __init__(self, file: Path, start_step: int, data: DataConfig, is_first: bool) -> None:
        self.file = file
        self.max_fraction, self.batch = data.max_bad_fraction, data.global_batch_size
        self._lines = AppendedLines(file, start_step) if is_first else None
        self.count = count_until(file, start_step)

    def record(self, step: int, bad: Sequence[BadSample]) -> None:
        """Add those of all ranks in update ``step``, counted from 0."""
        self.count += len(bad)
        if self._lines is not None:
            self._lines.write({"step": step + 1, **asdict(sample)} for sample in bad)

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()

    def are_too_many(self, num_updates: int) -> bool:
        """Whether their share of all samples of so many updates is above the limit."""
        return self.count > self.max_fraction * max(num_updates * self.batch, _FEWEST_SEEN)

    def error(self, num_updates: int) -> UserError:
        """What to say when they are."""
        return UserError(
            f"{self.count:,} of {num_updates * self.batch:,} samples could not be decoded, more "
            f"than data.max_bad_fraction={self.max_fraction:g}; {self.file} lists them",
            "pack the images again; or go on by the same command with a larger "
            "data.max_bad_fraction",
        )
