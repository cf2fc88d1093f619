"""The two data sets of `quality.py`, in the form of a user's data: PNGs in class folders, packed by
`ssl-vit shards pack`.

ELPV's solar cells come from PyPI (as in `ssl-vit demo`), Fashion-MNIST (Xiao et al. 2017, arXiv
1708.07747) from Debian's package `dataset-fashion-mnist`, which apt downloads without root.
"""

import gzip
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from quality_runs import run_command
from quality_table import Requirement

from ssl_vit.demo import find_elpv, lay_out_images
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.progress import progress

PARTS = {"train": 6_000, "val": 1_000}
"""Number of images taken from Fashion-MNIST's 60,000 and 10,000."""
FILES = {"train": "train", "val": "t10k"}

_SUBSET_SEED = 0
_PACKAGE = "dataset-fashion-mnist"
_INSTALLED = Path("usr/share/datasets/fashion-mnist")
_CLASSES = (
    *("top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)


@dataclass(frozen=True)
class DataSet:
    """Labeled images, and the requirement on networks pre-trained on them."""

    title: str
    """Name in the report."""
    requirement: Requirement
    """What every run must achieve."""
    lay_out: Callable[[Path], None]
    """Writes `{train,val}/CLASS/*.png` below a folder."""

    def pack(self, folder: Path) -> tuple[Path, Path]:
        """Train and test shards below ``folder``; packs those that are missing."""
        images, shards = folder / "images", folder / "shards"
        missing = [part for part in PARTS if not (shards / part / "index.json").is_file()]
        if missing:
            self.lay_out(images)
        for part in missing:
            run_command("shards", "pack", str(images / part), str(shards / part))
        return shards / "train", shards / "val"


def find_sets(names: list[str], fashion: Path | None, work: Path) -> dict[str, DataSet]:
    """The data sets of these names, after finding or downloading their sources.

    Args:
        names: Data sets.
        fashion: Folder of Fashion-MNIST's four files; None: look for it, then download it.
        work: Folder for downloads.

    Raises:
        UserError: A source is missing; the remedy tells how to get it.
    """
    found = {}
    if "fashion-mnist" in names:
        source = find_fashion(fashion, work / "download")
        found["fashion-mnist"] = DataSet(
            "Fashion-MNIST", Requirement(5.0, rises=False), lambda to: lay_out_fashion(source, to)
        )
    if "elpv" in names:
        cells = find_elpv()
        found["elpv"] = DataSet(
            "ELPV", Requirement(0.0, rises=True), lambda to: lay_out_images(cells, to)
        )
    return found


def find_fashion(given: Path | None, scratch: Path) -> Path:
    """Folder of Fashion-MNIST's files: the given one, an installed one, or Debian's package.

    Args:
        given: The user's folder, or None.
        scratch: Where the package is unpacked; nothing is installed.

    Raises:
        UserError: The files are in none of these places.
    """
    if given is not None:
        if not _holds_fashion(given):
            raise UserError(
                f"--fashion {given} lacks some of Fashion-MNIST's four files",
                f"it must hold {', '.join(_file_names())} (each with or without .gz)",
            )
        return given
    for folder in (Path("/") / _INSTALLED, scratch / _INSTALLED):
        if _holds_fashion(folder):
            return folder
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        print(f"Fashion-MNIST: apt-get download {_PACKAGE} (31 MB) into {scratch}", flush=True)
        scratch.mkdir(parents=True, exist_ok=True)
        quiet = {"cwd": scratch, "capture_output": True, "check": False}
        subprocess.run(["apt-get", "download", _PACKAGE], **quiet)
        for archive in scratch.glob(f"{_PACKAGE}*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive.name, "."], **quiet)
    if not _holds_fashion(scratch / _INSTALLED):
        raise UserError(
            f"Fashion-MNIST was not found, and apt could not download {_PACKAGE}",
            "run apt-get update and try again, give the folder of its four .gz files with "
            "--fashion, or leave it out with --data elpv",
        )
    return scratch / _INSTALLED


def lay_out_fashion(source: Path, images: Path) -> None:
    """Write the subset as PNGs of 28 × 28 gray pixels into `{train,val}/CLASS/`."""
    for part, count in PARTS.items():
        pixels, labels = (_read(source, name) for name in _file_names(part))
        places = draw_subset(labels, count, _SUBSET_SEED)
        for name in _CLASSES:
            (images / part / name).mkdir(parents=True, exist_ok=True)
        with progress(f"Fashion-MNIST {part}", count, "images") as advance:
            for place in places:
                folder = images / part / _CLASSES[labels[place]]
                with replacing(folder / f"{place:05d}.png") as partial:
                    Image.fromarray(pixels[place]).save(partial, format="PNG")
                advance(1)


def draw_subset(labels: np.ndarray, count: int, seed: int) -> list[int]:
    """Sorted indices of ``count`` images, stratified by class.

    Drawn by a hash, because numpy's permutations may change between versions.

    Args:
        labels: (N,) class numbers.
        count: Number of images, at most N.
        seed: Seed of the hash.
    """
    order = sorted(
        range(len(labels)), key=lambda place: hashlib.sha256(f"{seed}/{place}".encode()).digest()
    )
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * count / len(labels)
    shares = np.floor(exact).astype(int)
    # The remainder goes to the classes with the largest fractional parts.
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    left = dict(zip(classes.tolist(), shares.tolist(), strict=True))
    taken = []
    for place in order:
        label = int(labels[place])
        if left[label]:
            left[label] -= 1
            taken.append(place)
    return sorted(taken)


def read_idx(data: bytes) -> np.ndarray:
    """Parse an IDX file of uint8: two zeros, 8, the number of dimensions, their sizes as big-endian
    uint32, then the values.
    """
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape.tolist())


def _file_names(*parts: str) -> list[str]:
    return [
        f"{FILES[part]}-{kind}-ubyte"
        for part in parts or FILES
        for kind in ("images-idx3", "labels-idx1")
    ]


def _holds_fashion(folder: Path) -> bool:
    return all(any(_either(folder, name)) for name in _file_names())


def _either(folder: Path, name: str) -> list[Path]:
    return [file for file in (folder / f"{name}.gz", folder / name) if file.is_file()]


def _read(folder: Path, name: str) -> np.ndarray:
    file = _either(folder, name)[0]
    try:
        data = file.read_bytes()
        return read_idx(gzip.decompress(data) if file.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"cannot read {file}: {error}", "download Fashion-MNIST again") from None
