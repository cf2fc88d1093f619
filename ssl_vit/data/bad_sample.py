"""The record of a sample that could not be decoded. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class BadSample:
    """One place in the order of samples whose own image could not be used."""

    number: int
    """Sample number in the shard set."""
    epoch: int
    key: str
    shard: str
    """Path or URL of the shard."""
    problem: str
    replaced_by: int
    """Sample number that was used instead."""
