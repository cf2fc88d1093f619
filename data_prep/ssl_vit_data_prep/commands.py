"""`ssl-vit shards`: pack images, check a set of shards. Imports nothing slow at the top."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pack a folder of images into shards, and check shards.",
)

ShardsArgument = Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder of the shards.")]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Processes; 0 takes one per core.")
]

_FAULTS = 20  # listed; more are only counted
_CLASSES = 5  # listed, the largest first


@app.command()
def pack(
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="Folder of images; its sub-folders are the classes."),
    ],
    shards: ShardsArgument,
    shard_bytes: Annotated[
        str, typer.Option("--shard-bytes", help="Largest size of one tar, e.g. 256MiB.")
    ] = "256MiB",
    workers: WorkersOption = 0,
    shuffle_seed: Annotated[
        int, typer.Option("--shuffle-seed", help="Seed of the order of the images.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the set of shards in SHARDS.")
    ] = False,
) -> None:
    """Pack a folder of images into WebDataset tars with an index; bytes stay untouched."""
    from ssl_vit.distributed import cores_here
    from ssl_vit_data_prep.pack import REFUSED_FILE, pack_images
    from ssl_vit_data_prep.plan import parse_bytes

    num_bytes = parse_bytes(shard_bytes, "--shard-bytes")
    made = pack_images(images, shards, num_bytes, workers or cores_here(), shuffle_seed, overwrite)
    typer.echo(
        f"packed   {made.num_images:,} images into {_shards(made.num_shards)}, "
        f"{made.num_bytes / 1e6:,.1f} MB, in {made.seconds:.1f} s "
        f"({made.num_images / made.seconds:,.0f} images/s)"
    )
    typer.echo(f"classes  {_describe_classes(made.class_counts)}")
    if made.num_refused:
        typer.echo(f"refused  {made.num_refused:,} files, listed in {shards / REFUSED_FILE}")
    word = shlex.quote(f"data.shards={shards}")
    typer.echo(f"next     ssl-vit pretrain mae_small_data --run RUN {word}")


@app.command()
def check(
    shards: ShardsArgument,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare hashes and index; decode no image.")
    ] = False,
    workers: WorkersOption = 0,
) -> None:
    """Read every shard again: hash, index, and that each image decodes. Exit code 1 on a fault."""
    from ssl_vit.distributed import cores_here
    from ssl_vit_data_prep.check import check_shards

    opened, faults = check_shards(shards, not quick, workers or cores_here())
    if not faults:
        typer.echo(f"OK: {opened.num_samples:,} images in {_shards(len(opened.shards))}")
        return
    for fault in faults[:_FAULTS]:
        typer.echo(str(fault))
    if len(faults) > _FAULTS:
        typer.echo(f"… and {len(faults) - _FAULTS:,} more")
    raise typer.Exit(1)


def _shards(count: int) -> str:
    return f"{count:,} shard" if count == 1 else f"{count:,} shards"


def _describe_classes(counts: dict[str, int]) -> str:
    if not counts:
        return "none (images lie directly in the folder)"
    largest = sorted(counts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {count:,}" for name, count in largest[:_CLASSES])
    more = f", and {len(counts) - _CLASSES:,} more" if len(counts) > _CLASSES else ""
    return f"{len(counts):,}: {listed}{more}"
