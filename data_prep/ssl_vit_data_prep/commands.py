"""`ssl-vit shards`: make shards from images; check, index, reshard and preview them.

Imports nothing slow at the top.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ssl_vit.errors import UserError
from ssl_vit.units import format_bytes, parse_bytes
from ssl_vit_data_prep.layout import count_of
from ssl_vit_data_prep.options import (
    BytesOption,
    ClassesOption,
    ClassSource,
    DecodeOption,
    DuplicatesOption,
    EndingsOption,
    GroupColumnOption,
    ImagesArgument,
    IndexFolderOption,
    LabelColumnOption,
    LabelFieldOption,
    LabelsOption,
    ManifestOption,
    MaxPixelsOption,
    NewShardsArgument,
    NoDataOption,
    OverwriteOption,
    Page,
    PageOption,
    PathColumnOption,
    QualityOption,
    QuickOption,
    RangeOption,
    SeedOption,
    ShellOption,
    ShortSideOption,
    SourceArgument,
    SplitColumnOption,
    SplitFoldersOption,
    TarsArgument,
    ValFractionOption,
    WorkersOption,
)
from ssl_vit_data_prep.reports import (
    count_shards,
    echo_checked,
    echo_labels,
    echo_packed,
    echo_refused,
    echo_sampled,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make shards from a folder of images; check, index, reshard and preview shards.",
)


_FAULTS = 20  # listed; more are only counted


@app.command()
def pack(
    images: ImagesArgument,
    shards: NewShardsArgument,
    shard_bytes: BytesOption = "256MiB",
    workers: WorkersOption = 0,
    shuffle_seed: SeedOption = 0,
    classes: ClassesOption = ClassSource.folders,
    manifest: ManifestOption = None,
    path_column: PathColumnOption = "",
    label_column: LabelColumnOption = "",
    split_column: SplitColumnOption = "",
    group_column: GroupColumnOption = "",
    split_folders: SplitFoldersOption = True,
    val_fraction: ValFractionOption = 0.0,
    short_side: ShortSideOption = 0,
    quality: QualityOption = 90,
    max_pixels: MaxPixelsOption = 178_956_970,
    decode: DecodeOption = False,
    value_range: RangeOption = None,
    no_data: NoDataOption = None,
    page: PageOption = Page.first,
    overwrite: OverwriteOption = False,
) -> None:
    """Pack a folder of images into WebDataset tars with an index; run again to resume."""
    from ssl_vit.data.values import parse_no_data, parse_range
    from ssl_vit.distributed import cores_here
    from ssl_vit_data_prep.manifest import choose_columns
    from ssl_vit_data_prep.pack import check_ranges, pack_images
    from ssl_vit_data_prep.reencode import Reencoding
    from ssl_vit_data_prep.shard_writer import PackOptions

    check_ranges(val_fraction, max_pixels)
    given = (path_column, label_column, split_column, group_column)
    columns = choose_columns(given, manifest)
    options = PackOptions(
        parse_bytes(shard_bytes, "--shard-bytes "),
        shuffle_seed,
        "manifest" if manifest else classes.value,
        manifest,
        val_fraction,
        Reencoding(short_side, quality),
        max_pixels,
        decode,
        values=parse_range(value_range),
        no_data=parse_no_data(no_data),
        page=page.value,
        columns=columns,
        split_folders=split_folders,
    )
    made = pack_images(images, shards, options, workers or cores_here(), overwrite)
    echo_packed(made, shards, decode)


@app.command()
def check(
    shards: SourceArgument,
    quick: QuickOption = False,
    duplicates: DuplicatesOption = False,
    workers: WorkersOption = 0,
    allow_shell_urls: ShellOption = False,
) -> None:
    """Check the hash and index of every shard, and that each image decodes. Exit code 1 on a fault.

    Remote shards are fetched into the cache, unless they are already there.
    """
    from ssl_vit.data.cache import ShardCache
    from ssl_vit.distributed import cores_here
    from ssl_vit_data_prep.check import check_shards, list_others
    from ssl_vit_data_prep.duplicates import describe_duplicates

    if quick and duplicates:
        raise UserError(
            "--duplicates compares decoded images, and --quick decodes none",
            "leave one of the two out",
        )
    cache, workers = ShardCache(allow_shell_urls=allow_shell_urls), workers or cores_here()
    opened, faults, counts, repeated = check_shards(shards, not quick, workers, cache, duplicates)
    if others := list_others(opened):
        typer.echo(
            f"note: {count_of(len(others), 'tar')} in the same folder not in the index, "
            f"such as {others[0]}"
        )
    if not faults:
        typer.echo(f"OK: {opened.num_samples:,} images in {count_shards(len(opened.shards))}")
    if not quick:
        echo_checked(counts, opened.values)
    for fault in faults[:_FAULTS]:
        typer.echo(str(fault))
    if len(faults) > _FAULTS:
        typer.echo(f"… and {len(faults) - _FAULTS:,} more")
    for line in describe_duplicates(repeated, opened) if repeated else ():
        typer.echo(line)
    if faults:
        raise typer.Exit(1)


@app.command()
def index(
    sources: TarsArgument,
    out: IndexFolderOption = None,
    endings: EndingsOption = "",
    labels: LabelsOption = None,
    label_field: LabelFieldOption = "",
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes", help="File with one class name per line; a number means a line, from 0."
        ),
    ] = None,
    value_range: RangeOption = None,
    no_data: NoDataOption = None,
    workers: WorkersOption = 0,
    allow_shell_urls: ShellOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Make the index of shards that others wrote; reads each tar once, decodes a few images."""
    from ssl_vit.data.formats import ENDINGS
    from ssl_vit.data.values import parse_no_data, parse_range
    from ssl_vit.distributed import cores_here
    from ssl_vit_data_prep.class_names import read_class_names
    from ssl_vit_data_prep.index import IndexOptions, index_shards
    from ssl_vit_data_prep.tar_labels import check_label_options

    check_label_options(labels or "", label_field, classes)
    names = read_class_names(classes) if classes else ()
    options = IndexOptions(
        tuple(e.strip(" .").lower() for e in endings.split(",") if e.strip(" .")) or ENDINGS,
        label_field,
        names,
        allow_shell_urls,
        labels or "cls",
        parse_range(value_range),
        parse_no_data(no_data),
    )
    made = index_shards(sources, out, options, workers or cores_here(), overwrite)
    kinds = ", ".join(f"{ending} {count:,}" for ending, count in made.endings.items())
    images = count_of(made.index.num_samples, "image")
    typer.echo(
        f"indexed  {images} in {count_shards(len(made.index.shards))}, "
        f"{format_bytes(made.num_bytes)}: {made.folder}"
    )
    typer.echo(f"endings  {kinds}")
    if made.num_several:
        typer.echo(
            f"note     samples with several images, each counted: {made.num_several:,}; "
            "--endings selects some of them"
        )
    echo_labels(made)
    echo_sampled(made)
    echo_refused(made.refused, made.folder)
    word = shlex.quote(f"data.shards={made.folder}")
    typer.echo(f"next     ssl-vit pretrain mae_small_data --run RUN {word}")


@app.command()
def reshard(
    shards: SourceArgument,
    out: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the new shards; created.")],
    shard_bytes: Annotated[
        str, typer.Option("--shard-bytes", help="Largest size of a tar [default: 256MiB].")
    ] = "",
    num_shards: Annotated[
        int,
        typer.Option("--num-shards", min=0, max=2**20, help="Number of shards, of any size."),
    ] = 0,
    shuffle_seed: SeedOption = 0,
    workers: WorkersOption = 0,
    allow_shell_urls: ShellOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Change the size or number of shards and shuffle the samples again."""
    from ssl_vit.data.cache import ShardCache
    from ssl_vit.distributed import cores_here
    from ssl_vit_data_prep.reshard import reshard as write_shards

    cache = ShardCache(allow_shell_urls=allow_shell_urls)
    if num_shards and shard_bytes:
        raise UserError(
            "--num-shards and --shard-bytes are both given", "give the number or the size"
        )
    num_bytes = 0 if num_shards else parse_bytes(shard_bytes or "256MiB", "--shard-bytes ")
    workers = workers or cores_here()
    made = write_shards(shards, out, num_bytes, num_shards, shuffle_seed, workers, overwrite, cache)
    typer.echo(f"wrote    {made.num_samples:,} images into {count_shards(len(made.shards))}: {out}")


@app.command()
def preview(
    shards: SourceArgument,
    recipe: Annotated[str, typer.Argument(help="A recipe (see `ssl-vit recipes`) or config.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as path=value.")] = None,
    out: Annotated[Path, typer.Option("--out", help="PNG to write.")] = Path("preview.png"),
    images: Annotated[int, typer.Option("--images", min=1, max=64, help="Number of images.")] = 8,
) -> None:
    """Write a PNG of the objective's input from the first samples: crops, views, masks."""
    from ssl_vit.data.mixture import build_order
    from ssl_vit.recipes import read_config
    from ssl_vit.run.data import open_data, sizes_of
    from ssl_vit.run.value_range import settle_values

    config = read_config(recipe, [*(overrides or []), f"data.shards={shards}"], is_smoke=False)
    _, opened = open_data(config)
    config, notes = settle_values(config, opened, None)
    if opened is None:
        raise UserError("synthetic samples have no preview", "leave out data.source=synthetic")
    order = build_order(sizes_of(opened), config.data, config.seed)
    if not out.parent.is_dir():
        raise UserError(f"folder {out.parent} does not exist", "choose another --out")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", f"give a file, such as {out / 'preview.png'}")

    from ssl_vit_data_prep.preview import write_preview

    try:
        refs = write_preview(out, opened, order, config, images)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}", "choose another --out"
        ) from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            str(error), f"ssl-vit shards check {shards}  lists damaged images"
        ) from None
    typer.echo(f"wrote    {out}: the first {len(refs)} samples of {config.recipe}")
    for note in notes:
        typer.echo(f"note     {note}")
    for ref in refs:
        typer.echo(f"  {opened.key(ref.number)}")
