"""Formats, sizes and types of the images of a set, counted from their headers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_vit.data.raster import ImageFacts

_LISTED = 4  # values listed per property, the most frequent first


@dataclass(frozen=True)
class ImageCounts:
    """Counts over images; those of several shards can be added."""

    counts: Counter[str] = field(default_factory=Counter)
    """`format/JPEG`, `channels/RGB`, `depth/8-bit` and so on → number of images."""
    smallest: tuple[int, int] = (0, 0)
    """(height, width) of the image with the fewest pixels; zeros before the first."""
    largest: tuple[int, int] = (0, 0)

    def add(self, facts: "ImageFacts") -> "ImageCounts":
        """The counts with one more image."""
        counts = Counter(
            (
                "images",
                f"format/{facts.format}",
                f"channels/{facts.channels}",
                f"depth/{facts.depth}",
            )
        )
        counts["stacks"] = facts.num_pages > 1
        counts["pages"] = facts.num_pages if facts.num_pages > 1 else 0
        counts["transparent"] = facts.is_transparent
        counts["left out"] = facts.num_left_out > 0
        size = (facts.height, facts.width)
        return self + ImageCounts(counts, size, size)

    def __add__(self, other: "ImageCounts") -> "ImageCounts":
        sizes = [each for each in (self, other) if each.smallest[0]]
        return ImageCounts(
            self.counts + other.counts,
            min((each.smallest for each in sizes), key=_pixels, default=(0, 0)),
            max((each.largest for each in sizes), key=_pixels, default=(0, 0)),
        )

    def to_plain(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {"counts": self.counts, "smallest": self.smallest, "largest": self.largest}

    @classmethod
    def of_plain(cls, values: dict[str, Any]) -> "ImageCounts":
        """The inverse of :meth:`to_plain`."""
        smallest, largest = ((each[0], each[1]) for each in (values["smallest"], values["largest"]))
        return cls(Counter(values["counts"]), smallest, largest)

    def describe(self) -> str:
        """ "JPEG 1,200, PNG 3; 300 × 200 to 500 × 375 pixels; RGB 1,198, gray 5; 8-bit"."""
        sizes = f"{_size(self.smallest)} to {_size(self.largest)}"
        if self.smallest == self.largest:
            sizes = _size(self.smallest)
        listed = [self._list(kind) for kind in ("format", "channels", "depth")]
        return "; ".join((listed[0], f"{sizes} pixels", *listed[1:]))

    def notes(self, page: str | None) -> list[str]:
        """Notes on images that are not shown as they are stored.

        Args:
            page: Which page of a stack was taken: "first", "middle" or "each"; None if that could
                not be chosen.
        """
        lines = []
        if stacks := self.counts["stacks"]:
            taken = f"the {page or 'first'} page of each is" if page != "each" else "all are"
            hint = "; --page middle or --page each selects others" if page == "first" else ""
            lines.append(
                f"files with several pages: {stacks:,}, with {self.counts['pages']:,} pages in "
                f"all; {taken} taken{hint}"
            )
        if transparent := self.counts["transparent"]:
            lines.append(f"images with transparency, shown on white: {transparent:,}")
        if left_out := self.counts["left out"]:
            lines.append(f"images with channels beyond RGB, which are ignored: {left_out:,}")
        return lines

    def _list(self, kind: str) -> str:
        found = Counter(
            {
                name.removeprefix(f"{kind}/"): count
                for name, count in self.counts.items()
                if name.startswith(f"{kind}/")
            }
        )
        if len(found) == 1:
            return next(iter(found))
        listed = [f"{name} {count:,}" for name, count in found.most_common(_LISTED)]
        more = len(found) - _LISTED
        return ", ".join([*listed, f"{more} more"] if more > 0 else listed)


def count_images(facts: "Iterable[ImageFacts]") -> ImageCounts:
    """The counts of some images."""
    total = ImageCounts()
    for each in facts:
        total = total.add(each)
    return total


def add_counts(counts: Iterable[ImageCounts]) -> ImageCounts:
    """The sum of the counts of several shards."""
    total = ImageCounts()
    for each in counts:
        total = total + each
    return total


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
