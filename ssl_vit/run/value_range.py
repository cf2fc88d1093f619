"""Which stored values are black and white in a run on images of more than 8 bits.

A network trained with one range would see different images with another, so the range is
determined once, written to the run's config and its exports, and never taken from later data.
"""

from ssl_vit.data.shards import ShardSet
from ssl_vit.data.values import ValueRange
from ssl_vit.exports.folder import read_export_info
from ssl_vit.run.config import RunConfig
from ssl_vit.run.folder import RunFolder
from ssl_vit.run.start import find_checkpoint


def settle_values(
    config: RunConfig, shards: ShardSet | None, folder: RunFolder | None
) -> tuple[RunConfig, tuple[str, ...]]:
    """The config with its value range filled in, and messages about it.

    An explicit setting comes first, then the range the run was started with, then that of
    `resume_from`, then that of the index.

    Args:
        shards: The run's shards; None if its samples are synthetic.
        folder: The run folder; None if there is none.

    Raises:
        UserError: No range is given, and the indexes of the data differ.
    """
    if folder and folder.config.is_file():
        # Whatever it started with, including no range at all; other runs may be gone by now.
        found, origin = folder.read_config().data.values, "this run's config"
    elif (found := _of_resume_from(config)) is not None:
        origin = "resume_from"
    else:
        found, origin = _of_index(config, shards), "the index"
    data = config.data
    if (configured := data.values) is None and found is None:
        ignored = "note: data.no_data has no effect: no range of values is known"
        return config, ((ignored,) if data.no_data != "auto" else ())
    values = configured or found
    assert values is not None
    changes: dict[str, object] = {"value_range": (values.low, values.high)}
    if data.no_data == "auto" and found is not None and found.no_data is not None:
        changes["no_data"] = found.no_data
    settled = config.model_copy(update={"data": data.model_copy(update=changes)})
    return settled, tuple(_notes(settled, shards, "data.value_range" if configured else origin))


def _of_index(config: RunConfig, shards: ShardSet | None) -> ValueRange | None:
    if shards is None:
        return None
    if config.data.value_range == "auto":
        return shards.values
    # With an explicit range, indexes may differ in theirs; the no-data value is the first one's.
    return next((part.values for part in shards.parts if part.values), None)


def _of_resume_from(config: RunConfig) -> ValueRange | None:
    """The range of the network that a run starts from."""
    if not config.resume_from:
        return None
    checkpoint = find_checkpoint(config.resume_from)
    if checkpoint is None:
        return read_export_info(config.resume_from).values
    return RunFolder(checkpoint.parent.parent).read_config().data.values


def _notes(config: RunConfig, shards: ShardSet | None, origin: str) -> list[str]:
    values = config.data.values
    lines = [f"images of more than 8 bits: values {values} become 0 … 255 (from {origin})"]
    for part in shards.parts if shards else ():
        if part.values is not None and part.values != values:
            lines.append(
                f"warning: the index of {part.source} has another value range, {part.values}; "
                f"the one from {origin} is used"
            )
    return lines
