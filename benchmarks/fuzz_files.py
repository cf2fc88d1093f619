"""Images and tars for the fuzzing: valid ones of every kind, and format-aware changes."""

import io
import json
import random
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import tifffile
from fuzz_trial import NASTY, Kind, Trial, change_bytes
from PIL import Image

_NUM_SOUND, _NUM_CHANGED = 6, 4
# Sizes and counts to write into headers.
_CLAIMS = (0, 1, 255, 256, 600, 4096, 13_370, 30_000, 65_500, 65_535, 2**20, 2**31 - 1, 2**32 - 1)


def sound_images() -> dict[str, bytes]:
    """Small valid files by name, in every supported format and layout."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    deep = rng.integers(0, 4096, (40, 48), dtype=np.uint16)
    color, gray = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    found: dict[str, bytes] = {}

    def save(name: str, image: Image.Image, kind: str, **options: object) -> None:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found[name] = stream.getvalue()

    save("plain.jpg", color, "JPEG")
    save("progressive.jpg", color, "JPEG", progressive=True)
    save("gray.jpg", gray, "JPEG")
    save("cmyk.jpg", color.convert("CMYK"), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    save("turned.jpg", color, "JPEG", exif=exif)
    save("plain.png", color, "PNG")
    save("opacity.png", color.convert("RGBA"), "PNG")
    save("palette.png", color.quantize(16), "PNG")
    save("deep.png", Image.fromarray(deep), "PNG")
    save("moving.gif", gray, "GIF", save_all=True, append_images=[gray, color.convert("L")])
    save("plain.bmp", color, "BMP")
    save("plain.webp", color, "WEBP")
    save("plain.avif", color, "AVIF")
    save("plain.tif", color, "TIFF", compression="tiff_lzw")

    def write(name: str, values: np.ndarray, **options: object) -> None:
        stream = io.BytesIO()
        tifffile.imwrite(stream, values, **options)
        found[name] = stream.getvalue()

    write("deep.tif", deep, compression="zlib")
    write("tiles.tif", deep, tile=(16, 16))
    write("float.tif", deep.astype(np.float32), compression="zlib", predictor=True)
    write("stack.tif", np.stack([deep] * 3), photometric="minisblack")
    write("planes.tif", np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate")
    return found


def change_image(name: str, content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A copy with a wrong size in its header or with changed bytes, and what was changed."""
    choice = rng.randrange(4)
    if choice == 0:
        return change_bytes(content, rng)
    if choice == 1:  # near the start, where headers are
        changed = bytearray(content)
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(min(200, len(changed)))] = rng.randrange(256)
        return bytes(changed), "header bytes changed"
    sides = rng.choice(_CLAIMS), rng.choice(_CLAIMS)
    change = f"claims {sides[0]} × {sides[1]}"
    if name.endswith(".png"):
        head = content[12:16] + struct.pack(">II", *sides) + content[24:29]
        return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:], change
    if name.endswith(".jpg"):
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            if (place := content.find(marker)) > 0:
                size = struct.pack(">HH", *(side & 0xFFFF for side in sides))
                changed = content[: place + 5] + size + content[place + 9 :]
                if choice == 3:  # one scan many times
                    scan = content.find(b"\xff\xda")
                    changed = (
                        changed[:-2] + content[scan:-2] * rng.choice((2, 50, 3000)) + b"\xff\xd9"
                    )
                    change += ", many scans"
                return changed, change
    if name.endswith(".tif"):
        return _change_tag(content, rng)
    return change_bytes(content, rng)


def _change_tag(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change one entry of a little-endian TIFF's first directory."""
    start = struct.unpack("<I", content[4:8])[0]
    place = start + 2 + 12 * rng.randrange(struct.unpack("<H", content[start : start + 2])[0])
    tag, kind, count, value = struct.unpack("<HHII", content[place : place + 12])
    if rng.random() < 0.8:
        value = rng.choice(_CLAIMS)
    else:
        kind, count = rng.randrange(14), rng.choice(_CLAIMS)
    entry = struct.pack("<HHII", tag, kind, count, value)
    return content[:place] + entry + content[place + 12 :], f"tag {tag}={value}, {count} of {kind}"


class Images(Kind):
    """Folders of images, some of them changed, which are packed and checked; every file must be
    packed or refused.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sound = sound_images()

    def trial(self, rng: random.Random) -> Trial:
        images, shards = self.folder / "images", self.folder / "shards"
        if (shards / "index.json").is_file() and rng.random() < 0.5:
            words = ["shards", "check", str(shards), "--workers", "1"]
            return Trial(f"{self.change}: check", words, may_be_1=True)
        for old in (images, shards):
            shutil.rmtree(old, ignore_errors=True)
        images.mkdir()
        for number in range(_NUM_SOUND):
            (images / f"sound{number}.png").write_bytes(self.sound["plain.png"])
        changes = []
        for number in range(_NUM_CHANGED):
            name = rng.choice(sorted(self.sound))
            content, change = change_image(name, self.sound[name], rng)
            (images / f"{number}_{name}").write_bytes(content)
            changes.append(f"{name}: {change}")
        self.change = "; ".join(changes)
        options = rng.choice(([], ["--decode"], ["--short-side", "16"], ["--page", "each"]))
        words = ["shards", "pack", str(images), str(shards), "--workers", "1", *options]
        return Trial(
            self.change,
            [*words, "--value-range", "0", "4095"],
            check=lambda code: _count(shards, "each" in options) if code == 0 else "",
        )


def _count(shards: Path, has_pages: bool) -> str:
    samples = json.loads((shards / "index.json").read_text())["num_samples"]
    refused = shards / "refused.jsonl"
    samples += len(refused.read_text().splitlines()) if refused.is_file() else 0
    expected = _NUM_SOUND + _NUM_CHANGED
    if samples == expected or (has_pages and samples > expected):
        return ""
    return f"{samples} images packed or refused, not {expected}"


class Tars(Kind):
    """Foreign tars, which are indexed; every record must lie within its tar."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.image = sound_images()["plain.png"]

    def trial(self, rng: random.Random) -> Trial:
        tar, out = self.folder / "set.tar", self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        content, change = self._change(rng)
        tar.write_bytes(content)
        options = rng.choice(
            (
                [],
                *(["--labels", source] for source in ("folder", "tar", "none")),
                ["--label-field", rng.choice(("label", "a.b", "x"))],
            )
        )
        words = ["shards", "index", str(tar), "--out", str(out), "--workers", "1", *options]

        def check(code: int) -> str:
            if code:
                return ""
            records = np.load(out / "samples.npy")
            ends = records["offset"] + records["length"]
            return "" if (ends <= len(content)).all() else "a record ends beyond its tar"

        return Trial(change, words, check=check)

    def _change(self, rng: random.Random) -> tuple[bytes, str]:
        nasty = rng.choice(NASTY)
        label = rng.choice((b"1", b"-1", b"\xff", b"7" * 100_000, str(nasty).encode()))
        fields = rng.choice(({"label": 1}, {"label": nasty}, {"a": {"b": nasty}}, nasty))
        text = rng.choice((json.dumps(fields).encode(), b"[" * 200_000, b'{"label": "\\udc80"}'))
        stream = io.BytesIO()
        kind = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
        special = rng.randrange(8)
        with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
            for number in range(6):
                sample = f"{'f' * (120 if special == 7 and number == 3 else 1)}/{number}"
                for ending, data in (("cls", label), ("json", text), ("png", self.image)):
                    facts = tarfile.TarInfo(f"{sample}.{ending}")
                    facts.size = len(data)
                    if kind == tarfile.PAX_FORMAT and special == 1 and number == 2:
                        facts.pax_headers = rng.choice(_PAX)
                    try:
                        tar.addfile(facts, io.BytesIO(data))
                    except ValueError:
                        continue  # a name that this format cannot hold
        content = stream.getvalue()
        change = f"labels {label[:10]!r}, json {text[:20]!r}"
        match special:
            case 0:
                return content, change
            case 1:
                return content, f"{change}, special attributes"
            case 2:
                changed, how = change_bytes(content, rng)
                return changed, f"{change}; {how}"
            case _:
                changed, how = _change_header(content, rng)
                return changed, f"{change}; {how}"


_PAX = (
    {"size": "-5"},
    {"size": str(2**60)},
    {"path": "../../x.png"},
    {"path": "\n.png"},
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 18},
    {"GNU.sparse.size": "x", "GNU.sparse.numblocks": "3"},
    {"GNU.sparse.map": "1,2,3"},
    {"hdrcharset": "nonsense", "comment": "x" * 300_000},
)


def _change_header(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change one field of one member's header, with a valid checksum."""
    starts = [
        place for place in range(0, len(content), 512) if content[place + 257 :][:5] == b"ustar"
    ]
    start = rng.choice(starts)
    header = bytearray(content[start : start + 512])
    what = rng.randrange(3)
    if what == 0:
        size = rng.choice((-1, -512, 2**20, 2**33, 2**51, 2**63, 10**20))
        header[124:136] = b"\x80" + (size % 2**88).to_bytes(11, "big")
        if size < 0:
            header[124] = 0xFF
        change = f"size {size}"
    elif what == 1:
        header[156] = rng.choice(b"\x000123456789ABDKLMNSVXgx")
        change = f"type {chr(header[156])!r}"
    else:
        for _ in range(4):
            header[rng.randrange(345)] = rng.randrange(256)
        change = "header bytes"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:start] + bytes(header) + content[start + 512 :], change
