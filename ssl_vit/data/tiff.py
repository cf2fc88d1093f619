"""TIFFs that Pillow does not read, or reads wrong, by tifffile.

Pillow reads plain 8-bit files. It silently drops the lower bytes of 16-bit color, mixes up planes,
and does not invert min-is-white beyond 8 bits. A file that is neither gray nor RGB is refused with
a message that names its kind.
"""

import contextlib
import ctypes
import functools
import io
import logging
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import tifffile

from ssl_vit.data import jpeg
from ssl_vit.data.limits import TooLargeError, check_memory
from ssl_vit.data.raster import ImageFacts, Raster

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GDAL_NODATA, _ORIENTATION = 42113, 274
_ASSOCIATED = 1  # TIFF 6.0, section 18: color was multiplied by the opacity
_MOST_PAGES = 2**16
# None, LZW, deflate, PackBits, LERC, LZMA, Zstandard: they decode to the expected size at most.
_COMPRESSIONS = (1, 5, 8, 32773, 32946, 34887, 34925, 50000)
_KINDS = {"u": "", "i": " signed", "f": " float", "c": " complex"}


class _Layout(NamedTuple):
    """How the samples of a page are read."""

    color: str
    """"gray" or "RGB"."""
    depth: str
    opacity: int | None
    """Index of the opacity among the samples."""
    is_premultiplied: bool
    num_left_out: int
    plain: bool
    """Whether Pillow reads it correctly."""


def is_tiff(data: bytes) -> bool:
    """Whether the bytes begin like a TIFF."""
    return data[:4] in _MAGIC


@functools.cache
def quiet_libtiff() -> None:
    """Keep Pillow's libtiff from printing warnings from every data worker; errors in an image are
    raised anyway.
    """
    for library in (Path(PIL.__file__).parents[1] / "pillow.libs").glob("libtiff*.so*"):
        with contextlib.suppress(OSError, AttributeError):
            loaded = ctypes.CDLL(str(library))
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                set_handler = getattr(loaded, name)
                set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                set_handler(None)


def facts_of(data: bytes) -> ImageFacts:
    """The facts in the header of the first page, and the number of pages.

    Raises:
        ValueError: Not gray or RGB, or no readable header; says what it is. A ``TooLargeError`` if
            decoding it would take too much memory.
    """
    with _open(data) as file:
        page = file.pages.first
        layout = _layout(page)
        if not layout.plain:
            _check_cost(page)
        return ImageFacts(
            "TIFF",
            page.imagelength,
            page.imagewidth,
            layout.color,
            layout.depth,
            is_deep=page.dtype != np.uint8 and page.dtype != bool,
            is_transparent=layout.opacity is not None,
            num_left_out=layout.num_left_out,
            num_pages=_count_pages(file),
        )


def read_unusual(data: bytes) -> Raster | None:
    """Decode the first page if Pillow does not read it correctly; None for a plain one.

    Raises:
        ValueError: Damaged, too large, or not gray or RGB; says what it is.
    """
    with _open(data) as file:
        page: Any = file.pages.first
        layout = _layout(page)
        if layout.plain:
            # Pillow keeps one byte per pixel, or four, and unpacks a strip or tile at a time.
            stored = 1 if page.samplesperpixel == 1 else 4
            check_memory(page.imagelength, page.imagewidth, stored * (1 + _part(page)) + 3)
            return None
        values = _page_values(file, page)
        opacity = None if layout.opacity is None else values[:, :, layout.opacity]
        if values.ndim == 3:
            values = values[:, :, :3] if layout.color == "RGB" else values[:, :, 0]
        is_inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        if is_inverted:
            values = _inverted(values, page.bitspersample)
        if page.dtype == bool:
            values = values.astype(np.uint8) * 255
        orientation = page.tags.get(_ORIENTATION)
        return Raster(
            values,
            layout.depth,
            opacity,
            1.0 if values.dtype.kind == "f" else float(2**page.bitspersample - 1),
            layout.is_premultiplied,
            orientation.value if orientation and orientation.value in range(1, 9) else 1,
            _no_data(page),
            is_inverted,
        )


def take_pages(data: bytes, numbers: Iterable[int]) -> Iterator[bytes]:
    """Some pages as separate TIFFs with the same values.

    Args:
        numbers: Numbers from 0 among the pages of the first one's kind.

    Raises:
        ValueError: See :func:`read_unusual`; or a page whose color space would be lost.
    """
    with _open(data) as file:
        first: Any = file.pages.first
        _layout(first)
        kinds = tifffile.PHOTOMETRIC
        if first.photometric not in (kinds.MINISBLACK, kinds.MINISWHITE, kinds.RGB):
            raise ValueError(
                f"a TIFF of several pages in {first.photometric.name}, which cannot be split"
            )
        if len(file.pages) > 1:
            pages = _same_pages(file)
            for number in numbers:
                yield _as_file(first, _page_values(file, pages[number]))
            return
        # ImageJ writes a large stack as one page and more pixels behind it.
        _check_cost(first)
        stack = file.series[0].asarray(maxworkers=1).reshape(-1, *first.shape)
        for number in numbers:
            yield _as_file(first, stack[number])


def _as_file(page: Any, values: np.ndarray) -> bytes:
    """A TIFF of stored values with a page's metadata on them."""
    kinds = tifffile.PHOTOMETRIC
    is_inverted = page.photometric == kinds.MINISWHITE
    if is_inverted:
        values = _inverted(values, page.bitspersample)
    if values.dtype == bool or (values.dtype == np.uint8 and page.bitspersample < 8):
        values = values.astype(np.uint8) * (255 // (2**page.bitspersample - 1))
    tags = []
    if (turned := page.tags.get(_ORIENTATION)) is not None:
        tags.append((_ORIENTATION, "H", 1, int(turned.value), True))
    if (no_data := _no_data(page)) is not None:
        tags.append((_GDAL_NODATA, "s", 0, f"{no_data!r}", True))
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        values,
        photometric=kinds.MINISBLACK if is_inverted else page.photometric,
        extrasamples=page.extrasamples or None,
        planarconfig="contig" if values.ndim == 3 else None,
        compression="zlib",
        extratags=tags,
        metadata=None,
    )
    return stream.getvalue()


@contextlib.contextmanager
def _open(data: bytes) -> Iterator[tifffile.TiffFile]:
    """The opened file; errors in the block become a ValueError."""
    # It warns about every odd tag, from every data worker.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            yield file
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # parsers of broken files raise many kinds
        raise ValueError(f"damaged TIFF: {error or type(error).__name__}") from None


def _layout(page: Any) -> _Layout:
    if not all(isinstance(side, int) for side in (page.imagelength, page.imagewidth)):
        raise ValueError("damaged TIFF: its width or height is not a number")
    bits, kinds = page.bitspersample, tifffile.PHOTOMETRIC
    if page.dtype is None or isinstance(bits, tuple):
        raise ValueError(f"a TIFF of samples with {bits} bits")
    depth = f"{bits}-bit{_KINDS.get(page.dtype.kind, '')}"
    bands = page.samplesperpixel
    if page.imagedepth > 1:
        raise ValueError(f"a TIFF volume of {page.imagedepth} slices, {depth}")
    if page.dtype.kind not in "buif":
        raise ValueError(f"a TIFF of complex numbers, {depth}")
    is_small = page.dtype == np.uint8 or page.dtype == bool
    is_gray = page.photometric in (kinds.MINISBLACK, kinds.MINISWHITE)
    if not is_gray and page.photometric != kinds.RGB:
        if is_small:
            name = "palette" if page.photometric == kinds.PALETTE else page.photometric.name
            return _Layout(name, depth, None, False, 0, plain=True)
        raise ValueError(f"a TIFF in {page.photometric.name}, {depth}")
    num_colors = 1 if is_gray else 3
    extra = [int(kind) for kind in page.extrasamples]
    opacity = next((num_colors + n for n, kind in enumerate(extra) if kind in (1, 2)), None)
    known = num_colors + (opacity is not None)
    if bands < num_colors or (is_gray and bands > known):
        raise ValueError(f"a TIFF of {bands} bands, {depth}, that are neither gray nor RGB")
    return _Layout(
        "gray" if is_gray else "RGB",
        depth,
        opacity,
        opacity is not None and extra[opacity - num_colors] == _ASSOCIATED,
        bands - known,
        # Pillow reads 8 bits in chunky order with at most one opacity or unknown channel. It does
        # not read gray with an opacity that is associated, or with white as 0.
        plain=is_small
        and bands <= num_colors + 1
        and (bands == 1 or page.planarconfig == 1)
        and not (is_gray and opacity is not None),
    )


def _count_pages(file: tifffile.TiffFile) -> int:
    """Pages of the first one's kind; thumbnails and smaller copies are not counted."""
    if len(file.pages) == 1:
        # ImageJ writes a large stack as one page and more pixels behind it.
        count = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
        return count if isinstance(count, int) and count > 0 else 1
    return max(1, len(_same_pages(file)))


def _same_pages(file: tifffile.TiffFile) -> list[Any]:
    if (count := len(file.pages)) > _MOST_PAGES:
        raise TooLargeError(f"a TIFF of {count:,} pages, more than {_MOST_PAGES:,}; split it")
    first: Any = file.pages.first
    pages: list[Any] = list(file.pages)
    kind = (first.shape, first.dtype, first.photometric, first.bitspersample)
    return [
        page
        for page in pages
        if not page.is_reduced
        and (page.shape, page.dtype, page.photometric, page.bitspersample) == kind
    ]


def _page_values(file: tifffile.TiffFile, page: Any) -> np.ndarray:
    """(H, W) or (H, W, S) stored values of a page."""
    _check_cost(page)
    _check_parts(file, page)
    size = file.filehandle.size
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset + length > size:
            raise ValueError("truncated TIFF: its pixels lie behind the end of the file")
    values = page.asarray(maxworkers=1)
    if values.shape != page.shape:
        raise ValueError("damaged TIFF: its data does not fill the image")
    return np.moveaxis(values, 0, 2) if page.axes.startswith("S") else values


def _check_cost(page: Any) -> None:
    """Refuse a page by its header.

    Raises:
        TooLargeError: Decoding it would take too much memory.
    """
    stored = page.samplesperpixel * page.dtype.itemsize
    # One strip or tile is unpacked at a time.
    unpacked = stored * _part(page)
    if page.compression == 1:  # read in place, and copied to be turned around
        unpacked = stored * (page.photometric == tifffile.PHOTOMETRIC.MINISWHITE)
    check_memory(page.imagelength, page.imagewidth, stored + unpacked + 3)


def _check_parts(file: tifffile.TiffFile, page: Any) -> None:
    """Refuse strips and tiles with an embedded image that is larger than they are.

    Raises:
        ValueError: There is one, or its format is not known here.
    """
    if page.compression in _COMPRESSIONS:
        return
    most = page.imagelength * page.imagewidth * max(1.0, _part(page))
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        file.filehandle.seek(offset)
        data = file.filehandle.read(length)
        if data[:2] == b"\xff\xd8" and (size := jpeg.size_of(data)):
            jpeg.check_cost(data, *size)
        elif data[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: T.800, A.5.1
            size = struct.unpack(">II", data[8:16].ljust(8, b"\0"))
        else:
            name = getattr(page.compression, "name", page.compression)
            raise ValueError(f"a TIFF compressed by {name}, which is not read beyond 8 bits")
        if size[0] * size[1] > most:
            raise ValueError("damaged TIFF: the image in a strip or tile is larger than it")


def _part(page: Any) -> float:
    """Share of a page that one strip or tile holds."""
    pixels = page.imagelength * page.imagewidth
    if page.is_tiled:  # a tile may be larger than the page
        return page.tilelength * page.tilewidth / max(1, pixels)
    rows = min(page.rowsperstrip or page.imagelength, page.imagelength)
    return rows * page.imagewidth / max(1, pixels)


def _inverted(values: np.ndarray, bits: int) -> np.ndarray:
    """Min-is-white values as min-is-black."""
    if values.dtype.kind == "u":
        white = values.dtype.type(2**bits - 1)
        return np.subtract(white, values, out=values if values.flags.writeable else None)
    if values.dtype == bool:
        return ~values
    raise ValueError(f"a min-is-white TIFF of {values.dtype} values, for which white is undefined")


def _no_data(page: Any) -> float | None:
    tag = page.tags.get(_GDAL_NODATA)
    try:
        value = float(tag.value) if tag else None
    except (TypeError, ValueError):
        return None
    if value is None or not np.isfinite(value):
        return None
    is_inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    return 2**page.bitspersample - 1 - value if is_inverted else value
