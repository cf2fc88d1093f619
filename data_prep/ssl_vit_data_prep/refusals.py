"""Files that are not packed: each with a kind, which is counted, and a reason for the user."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ssl_vit.files import replacing

REFUSED_FILE = "refused.jsonl"
NO_MEMORY = "not enough memory to decode it"

Kind = Literal[
    "no image ending",
    "hidden",
    "special file",
    "link in a circle",
    "broken link",
    "unreadable",
    "empty",
    "no image",
    "no value range",
    "truncated",
    "damaged",
    "too many pixels",
    "too large",
    "not in the manifest",
    "only in the manifest",
    "in no set",
    "metadata",
    "symbolic link",
    "inner archive",
    "unreadable label",
    "behind the end mark",
    "compressed",
]


@dataclass(frozen=True)
class Refusal:
    """A file that is not packed."""

    path: str
    """Relative to the image folder."""
    kind: Kind
    reason: str


class RefusedError(ValueError):
    """Raised by checks of a single file.

    Args:
        kind, reason: As in :class:`Refusal`.
    """

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind: Kind = kind
        self.reason = reason


def write_refused(folder: Path, refusals: Sequence[Refusal]) -> None:
    """Write one line per refusal, sorted by path; no file if there are none."""
    path = folder / REFUSED_FILE
    if not refusals:
        path.unlink(missing_ok=True)
        return
    lines = [
        json.dumps(asdict(refusal), ensure_ascii=True) + "\n"
        for refusal in sorted(refusals, key=lambda refusal: refusal.path)
    ]
    with replacing(path) as partial:
        partial.write_text("".join(lines))


def count_kinds(refusals: Iterable[Refusal]) -> dict[Kind, int]:
    """The number of refusals of each kind, the most frequent first."""
    counts: Counter[Kind] = Counter(refusal.kind for refusal in refusals)
    return dict(counts.most_common())
