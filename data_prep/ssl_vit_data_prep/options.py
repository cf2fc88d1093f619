"""The options of `ssl-vit shards`. Imports nothing slow."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer


class Page(StrEnum):
    """Page of a file that holds several."""

    first = "first"
    middle = "middle"
    each = "each"


class ClassSource(StrEnum):
    """Source of the labels."""

    folders = "folders"
    none = "none"


NewShardsArgument = Annotated[
    Path, typer.Argument(metavar="SHARDS", help="Folder of the shards; created.")
]
SourceArgument = Annotated[
    str, typer.Argument(metavar="SHARDS", help="Folder of the shards, or its URL.")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, max=1024, help="Processes; 0 for one per core.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing set of shards.")
]
BytesOption = Annotated[
    str,
    typer.Option(
        "--shard-bytes",
        help="Largest size of a tar, e.g. 256MiB; its end mark (10 KiB at most) does not count.",
    ),
]
ShellOption = Annotated[
    bool, typer.Option("--allow-shell-urls", help="Run the commands of pipe: URLs.")
]
SeedOption = Annotated[int, typer.Option("--shuffle-seed", help="Seed of the order of the images.")]
PathColumnOption = Annotated[
    str, typer.Option("--path-column", help="Manifest column of paths [default: path].")
]
LabelColumnOption = Annotated[
    str,
    typer.Option("--label-column", help="Manifest column of labels [default: label]."),
]
SplitColumnOption = Annotated[
    str,
    typer.Option("--split-column", help="Manifest column of splits: train, val or test."),
]
GroupColumnOption = Annotated[
    str,
    typer.Option(
        "--group-column",
        help="Manifest column of groups (patient, slide, …), kept together by --val-fraction and "
        "by what `ssl-vit finetune` holds out.",
    ),
]
SplitFoldersOption = Annotated[
    bool,
    typer.Option(
        "--split-folders/--no-split-folders",
        help="Whether folders named train, val or test are sets.",
    ),
]

RangeOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--value-range",
        metavar="LOW HIGH",
        help="Stored values of black and white in images of more than 8 bits; measured on a sample "
        "unless given.",
    ),
]
NoDataOption = Annotated[
    float | None,
    typer.Option(
        "--no-data",
        help="Stored value of pixels without data, in images of more than 8 bits; taken from the "
        "files or detected unless given.",
    ),
]
ImagesArgument = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGES",
        help="Folder of images; its sub-folders are classes, or train, val and test.",
    ),
]
ClassesOption = Annotated[ClassSource, typer.Option("--classes", help="Where labels come from.")]
ManifestOption = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        help="CSV or JSONL with path, label and any further columns, instead of class folders.",
    ),
]
ValFractionOption = Annotated[
    float,
    typer.Option(
        "--val-fraction",
        help="Share of the images that goes to SHARDS/val, the rest to SHARDS/train.",
    ),
]
ShortSideOption = Annotated[
    int,
    typer.Option(
        "--short-side",
        min=0,
        max=2**16,
        help="Scale larger images down to this shorter side, as JPEG; --shard-bytes is then "
        "an estimate.",
    ),
]
QualityOption = Annotated[int, typer.Option("--quality", min=1, max=100, help="JPEG quality.")]
MaxPixelsOption = Annotated[
    int,
    typer.Option("--max-pixels", min=1, help="Refuse larger images; 0.18 billion at most."),
]
DecodeOption = Annotated[
    bool,
    typer.Option("--decode", help="Decode every image and refuse damaged ones (slower)."),
]
PageOption = Annotated[
    Page, typer.Option("--page", help="Which pages to pack of a file with several.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Compare hashes and index; decode no image.")
]
DuplicatesOption = Annotated[
    bool, typer.Option("--duplicates", help="Count images with the same pixels; list some.")
]
TarsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SHARDS…",
        help="Tars: paths, URLs with braces such as https://host/{000..099}.tar, or a folder.",
    ),
]
IndexFolderOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the index; by default that of the shards."),
]
EndingsOption = Annotated[
    str,
    typer.Option("--endings", help="Endings of the images, by commas; all supported if not given."),
]
LabelsOption = Annotated[
    Literal["cls", "json", "folder", "tar", "none"] | None,
    typer.Option(
        "--labels",
        help="Where labels are: .cls (default), .json, folder in the tar, name of the tar.",
    ),
]
LabelFieldOption = Annotated[
    str,
    typer.Option(
        "--label-field",
        help="Field of a sample's .json with its label, such as label or meta.class.id.",
    ),
]
