"""A survey of sampled images before a set is packed or indexed: whether they can be read, and which
stored values are black and white.

The range is measured once for the whole set, over all its splits: between two percentiles of the
sampled values, so that a few hot pixels do not darken everything else.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ssl_vit.data.decode import Picture, facts_of, read_raster
from ssl_vit.data.values import PERCENTILES, ValueRange, format_value, is_no_data
from ssl_vit.errors import UserError
from ssl_vit_data_prep.refusals import NO_MEMORY
from ssl_vit_data_prep.statistics import pixels_to_measure

_VALUES = 4096  # sampled per image
_LEAST_USED = 0.1  # smallest share of a range that a set uses without a warning
_CLIPPED = 0.05  # largest share of values outside of a given range without a warning
_LEAST_ABSENT = 1e-3  # smallest share of the values that are no data, if it is detected
_FAR = 2.0  # smallest distance from all other values, in spans of those
_FEWEST_VALUES = 16  # fewest different values beside the no-data value


@dataclass(frozen=True)
class Look:
    """One sampled image."""

    problem: str = ""
    """Why it cannot be read; empty if it can."""
    depth: str = ""
    """Type of a stored value, such as "16-bit"."""
    is_deep: bool = False
    """Whether it has more than 8 bits."""
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(N,) float64: some of its finite stored values."""
    no_data: float | None = None
    """The no-data value that the file declares."""
    has_nonfinite: bool = False
    """Whether some values are NaN or infinite."""
    is_inverted: bool = False
    """Whether low values are white in the file; they are inverted here."""


@dataclass(frozen=True)
class Survey:
    """The result for a set."""

    num_images: int
    """Number of sampled images."""
    values: ValueRange | None
    """Range of values of more than 8 bits; None if no sampled image has them."""
    notes: tuple[str, ...] = ()
    """Notes and warnings about the range, for the user."""


def look_at(data: bytes) -> Look:
    """Decode one image and keep some of its values."""
    try:
        facts = facts_of(data)
        raster = read_raster(data) if facts.is_deep else None
        if raster is None:
            pixels = pixels_to_measure(Picture(data))
            return Look(depth=facts.depth, values=_some(pixels.reshape(-1)))
        nonfinite = raster.values.dtype.kind == "f" and not np.isfinite(raster.values).all()
        return Look(
            "",
            facts.depth,
            True,
            _some(raster.measured()),
            raster.no_data,
            bool(nonfinite),
            raster.is_inverted,
        )
    except (ValueError, MemoryError) as error:
        return Look(str(error) or NO_MEMORY)


def check_readable(looks: Sequence[Look], place: object) -> None:
    """Refuse a set if most of its sampled images cannot be read, before hours are spent on it.

    Args:
        place: Where they are from, for the message.

    Raises:
        UserError: Most cannot be read; gives the most frequent reason.
    """
    problems = Counter(look.problem for look in looks if look.problem)
    count = problems.total()
    if count * 2 <= len(looks):
        return
    reason, times = problems.most_common(1)[0]
    remedy = "convert them to JPEG, PNG or TIFF (gray or RGB), or leave them out"
    raise UserError(
        f"{count:,} of {len(looks):,} sampled files in {place} cannot be read, {times:,} of them: "
        f"{reason}",
        f"install that, or {remedy}" if "pip install" in reason else remedy,
    )


def survey(looks: Sequence[Look], given: ValueRange | None, no_data: float | None) -> Survey:
    """Find the value range of a set.

    Args:
        looks: Its sampled images.
        given: A range given by the user.
        no_data: A no-data value given by the user.
    """
    deep = [look for look in looks if look.is_deep]
    notes = _notes_on_levels(looks)
    if not deep and (given or no_data is not None):
        notes.append(
            f"--value-range and --no-data have no effect on the {len(looks):,} sampled images: "
            "none has more than 8 bits"
        )
    if not deep:
        return Survey(len(looks), given and replace(given, no_data=no_data), tuple(notes))
    absent = _no_data_of([look for look in deep if len(look.values)], no_data)
    measured_looks = [each for look in deep if len((each := _without(look, absent)).values)]
    if not measured_looks:
        if given is None:
            raise UserError(
                f"the {len(deep):,} sampled images of more than 8 bits have no pixels with data",
                "set the values of black and white:  --value-range LOW HIGH",
            )
        return Survey(len(looks), replace(given, no_data=absent), tuple(notes))
    notes += _notes_on_values(deep)
    # As many values from each image, so that a large one counts no more than a small one.
    measured = np.concatenate([look.values for look in measured_looks])
    measured, saturated = _without_saturation(measured)
    notes += _notes_on_extremes(absent, given=no_data is not None, saturated=saturated)
    low, high = (float(value) for value in np.percentile(measured, PERCENTILES))
    if given:
        values_range = ValueRange(given.low, given.high, absent)
        notes += _notes_on_given(measured, given, (low, high))
    else:
        values_range = _rounded(low, high, measured, absent, len(deep))
        notes += _notes_on_mixture(measured_looks)
    return Survey(len(looks), values_range, tuple(notes))


def _some(values: np.ndarray) -> np.ndarray:
    if len(values) > _VALUES:
        # Random places: a stride could fall on the same columns of every row.
        places = np.random.Generator(np.random.Philox(0)).integers(0, len(values), _VALUES)
        values = values[places]
    return values.astype(np.float64)


def _without(look: Look, no_data: float | None) -> Look:
    """The look without no-data values."""
    if no_data is None:
        return look
    return replace(look, values=look.values[~is_no_data(look.values, no_data)])


def _no_data_of(deep: Sequence[Look], given: float | None) -> float | None:
    if given is not None:
        return given
    of_files = Counter(look.no_data for look in deep if look.no_data is not None)
    if of_files:
        return of_files.most_common(1)[0][0]
    # By type: a value that stands out among reflectances does not among 16-bit counts.
    for depth in sorted({look.depth for look in deep}):
        values = np.concatenate([look.values for look in deep if look.depth == depth])
        if (found := find_no_data(values)) is not None:
            return found
    return None


def find_no_data(values: np.ndarray) -> float | None:
    """A value that can only mean "no data": frequent, at one end, and far from all others, such
    as −9,999 among reflectances of 0 to 1.

    Args:
        values: (N,) finite.
    """
    for extreme in (float(values.min()), float(values.max())):
        others = values[values != extreme]
        if len(others) > (1 - _LEAST_ABSENT) * len(values) or not _is_far(extreme, others):
            continue
        if not _is_full_scale(extreme):
            return extreme
    return None


def _is_far(extreme: float, others: np.ndarray) -> bool:
    if len(np.unique(others)) < _FEWEST_VALUES:
        return False
    return float(np.abs(others - extreme).min()) > _FAR * float(np.ptp(others))


def _is_full_scale(value: float) -> bool:
    """Whether it is the largest value of a whole number of bits, as in a saturated pixel."""
    return value in {2.0**bits - 1 for bits in (*range(8, 17), 31, 32)}


def _without_saturation(values: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The values without saturated ones that are far from all others, and the saturated value."""
    largest = float(values.max())
    others = values[values != largest]
    if _is_full_scale(largest) and _is_far(largest, others):
        return others, largest
    return values, None


def _notes_on_extremes(no_data: float | None, given: bool, saturated: float | None) -> list[str]:
    notes = []
    if no_data is not None and not given:
        notes.append(
            f"warning: {format_value(no_data)} is treated as no data and shown black (the files "
            "declare it, or it is far from all other values); --no-data VALUE sets another"
        )
    if saturated is not None:
        notes.append(
            f"warning: {format_value(saturated)} is far from all other values and shown white, as "
            f"a saturated pixel; --no-data {saturated:g} makes it black"
        )
    return notes


def _notes_on_values(deep: Sequence[Look]) -> list[str]:
    notes = []
    if nonfinite := sum(look.has_nonfinite for look in deep):
        notes.append(
            f"{nonfinite:,} of {len(deep):,} sampled images have values that are not finite: NaN "
            "becomes black, infinity black or white"
        )
    if inverted := sum(look.is_inverted for look in deep):
        notes.append(
            f"{inverted:,} of {len(deep):,} sampled images are TIFFs in which low values are "
            "white; the range is that of their inverted values, such as 65,535 − value"
        )
    return notes


def _rounded(
    low: float, high: float, values: np.ndarray, no_data: float | None, num_images: int
) -> ValueRange:
    if (values == np.round(values)).all():
        low, high = float(np.floor(low)), float(np.ceil(high))
    else:
        digits = 5 - math.floor(math.log10(high - low)) if high > low else 6
        low, high = round(low, digits), round(high, digits)
    if high <= low:
        high = low + 1.0  # all values are the same
    return ValueRange(low, high, no_data, num_images)


def _notes_on_levels(looks: Sequence[Look]) -> list[str]:
    """A warning if 8-bit images are nearly black, or nearly of one gray."""
    plain = [look.values for look in looks if not look.is_deep and len(look.values)]
    if not plain:
        return []
    low, high = np.percentile(np.concatenate(plain), PERCENTILES)
    if high - low >= _LEAST_USED * 255:
        return []
    return [
        f"warning: the sampled 8-bit images use the levels {low:.0f} … {high:.0f} of 0 … 255 only; "
        "stretch them before they are packed, or pack the originals of more than 8 bits"
    ]


def _notes_on_given(values: np.ndarray, given: ValueRange, found: tuple[float, float]) -> list[str]:
    low, high = max(found[0], given.low), min(found[1], given.high)
    outside = float(np.mean((values < given.low) | (values > given.high)))
    span = f"{format_value(found[0])} … {format_value(found[1])}"
    notes = []
    if high - low < _LEAST_USED * (given.high - given.low):
        notes.append(
            f"warning: the sampled values, {span}, use less than a tenth of --value-range "
            f"{given.low:g} {given.high:g}"
        )
    if outside > _CLIPPED:
        notes.append(
            f"warning: {outside:.0%} of the sampled values are outside of --value-range "
            f"{given.low:g} {given.high:g} and become black or white; their range is {span}"
        )
    return notes


def _notes_on_mixture(deep: Sequence[Look]) -> list[str]:
    depths = sorted({look.depth for look in deep})
    if len(depths) == 1:
        return []
    spans = []
    for depth in depths:
        values = np.concatenate([look.values for look in deep if look.depth == depth])
        low, high = (float(value) for value in np.percentile(values, PERCENTILES))
        spans.append(f"{depth} images have {format_value(low)} … {format_value(high)}")
    return [f"warning: one range is used for different kinds of values: {', '.join(spans)}"]
