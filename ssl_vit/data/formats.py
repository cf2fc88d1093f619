"""File formats by their first bytes: those that are read, and names for those that are not.

A refused file is named for what it is: someone who packs 10,000 HEIC photographs should read
"HEIC", not "not a JPEG".
"""

from collections.abc import Callable

# The formats that are read from untrusted files. Pillow knows forty, and not all of them are safe:
# EPS is decoded by an external program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")

ENDINGS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "avif"),
    *("heic", "heif"),  # read where pillow-heif is installed, else refused by name
)
"""File endings of images, in lower case."""

HEIC = 'HEIC, the format of iPhone photographs; to read it:  pip install "ssl-vit[heic]"'

# (offset, bytes there, name)
_MAGIC = (
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\xff\xd8\xff", "a JPEG with a damaged header"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG with a damaged header"),
    (0, b"II*\x00", "a TIFF with a damaged header"),
    (0, b"MM\x00*", "a TIFF with a damaged header"),
    (0, b"II+\x00", "a BigTIFF with a damaged header"),
    (0, b"MM\x00+", "a BigTIFF with a damaged header"),
    (0, b"GIF8", "a GIF with a damaged header"),
    (0, b"BM", "a BMP with a damaged header"),
    (8, b"WEBP", "a WebP with a damaged header"),
    (128, b"DICM", "DICOM"),
    (0, b"\x5c\x01\x00\x00", "NIfTI"),
    (344, b"n+1\x00", "NIfTI"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "compressed by gzip"),
    (0, b"BZh", "compressed by bzip2"),
    (0, b"\xfd7zXZ\x00", "compressed by xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by Zstandard"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (0, b"\x00\x00\x01\x00", "an icon (.ico)"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself; run git lfs pull"),
    *((0, b"P%d" % kind, "PNM (.pgm, .ppm)") for kind in range(1, 8)),
)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), "AVIF, which this Pillow cannot read or which is damaged"),
    b"crx ": "a Canon raw photograph (CR3)",
    b"qt  ": "a QuickTime video",
}
_OF_ENDINGS = {
    **dict.fromkeys(("dcm", "dicom"), "DICOM"),
    **dict.fromkeys(("jp2", "j2k", "jpx"), "JPEG 2000"),
    "jxl": "JPEG XL",
    "npy": "a NumPy array",
    "npz": "NumPy arrays",
    "nii": "NIfTI",
    "svg": "a vector drawing",
    **dict.fromkeys(("cr2", "cr3", "nef", "arw", "dng", "raf", "orf"), "a raw photograph"),
    **dict.fromkeys(("svs", "ndpi", "mrxs", "scn"), "a whole-slide image"),
    **dict.fromkeys(("czi", "lif", "nd2", "oib", "vsi", "lsm"), "a microscope's own format"),
    **dict.fromkeys(("mp4", "mov", "avi", "mkv", "webm"), "a video"),
    **dict.fromkeys(("zip", "tar", "gz", "tgz", "7z", "rar"), "an archive"),
    **dict.fromkeys(("pgm", "ppm", "pnm"), "PNM"),
    **dict.fromkeys(("exr", "hdr"), "a high-dynamic-range image"),
    **dict.fromkeys(("h5", "hdf5"), "HDF5"),
    "psd": "a Photoshop document",
    "fits": "FITS",
    "pdf": "PDF",
}


def is_heic(data: bytes) -> bool:
    """Whether the bytes are a HEIC photograph."""
    return data[4:8] == b"ftyp" and _BRANDS.get(data[8:12]) == HEIC and b"avif" not in data[8:64]


def name_of_content(data: bytes) -> str:
    """A name for a file that is not one of ``FORMATS``, or that cannot be opened as such."""
    if data[4:8] == b"ftyp":
        if data[8:12] in (b"mif1", b"msf1") and b"avif" in data[8:64]:
            return _BRANDS[b"avif"]
        return _BRANDS.get(data[8:12], "an MP4 video")
    for offset, magic, name in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return name
    if is_html(data):
        return "an HTML page, probably from a failed download"
    start = _start_of_text(data)
    if start.startswith((b"<?xml", b"<svg")):
        return "an SVG drawing" if b"<svg" in data[:4096].lower() else "XML"
    if start.startswith((b"{", b"[")) and _is_text(data[:512]):
        return "JSON, probably from a failed download"
    if not data.strip(b"\0"):
        return "nothing but zeros"
    return "text" if _is_text(data[:512]) else f"none of {', '.join(FORMATS)}"


def is_html(data: bytes) -> bool:
    """Whether the bytes are an HTML page."""
    return _start_of_text(data).startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def _start_of_text(data: bytes) -> bytes:
    return data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()


def name_of_ending(ending: str) -> str:
    """A name for files with this ending; empty if there is none."""
    return _OF_ENDINGS.get(ending, "")


def registered(opens_heic: bool) -> tuple[str, ...]:
    """The formats that Pillow may use."""
    return (*FORMATS, "HEIF") if opens_heic and _register_heic() else FORMATS


def _register_heic() -> bool:
    try:
        import pillow_heif  # type: ignore[import-not-found] - an extra
    except ImportError:
        return False
    register: Callable[[], None] = pillow_heif.register_heif_opener
    register()
    return True


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        if error.start < len(data) - 4:
            return False
        text = data[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)
