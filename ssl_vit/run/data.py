"""The data of a run: from its config to opened shards, and what the plan needs to know about them.

No torch here.
"""

from ssl_vit.data.cache import ShardCache
from ssl_vit.data.config import SYNTHETIC_SAMPLES
from ssl_vit.data.labels import check_labels, check_probed
from ssl_vit.data.order import lanes_of_rank
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.data.urls import local_path
from ssl_vit.distributed import Processes
from ssl_vit.errors import UserError
from ssl_vit.monitors.config import FEWEST_PROBED
from ssl_vit.run.config import RunConfig
from ssl_vit.training.plan import DataFacts, SetPlan
from ssl_vit.units import parse_bytes


def open_data(config: RunConfig) -> tuple[ShardCache, ShardSet | None]:
    """The shards of a run and the cache for remote ones; no shards if the data are synthetic."""
    engine = config.engine
    cache = ShardCache(
        None if engine.cache_folder == "auto" else local_path(engine.cache_folder),
        parse_bytes(str(engine.cache_bytes), "engine.cache_bytes="),
        config.data.allow_shell_urls,
    )
    if config.data.source == "synthetic":
        return cache, None
    shards = open_shards(config.data.sources, cache)
    check_distinct(shards)
    return cache, shards


def open_labeled(config: RunConfig, cache: ShardCache) -> ShardSet | None:
    """The shards of a run's online probes; None if it has none.

    Raises:
        UserError: They are missing, or have too few labels, classes or images per class.
    """
    if not config.monitor.labeled:
        return None
    shards = open_shards(config.monitor.labeled, cache)
    check_labels(shards, FEWEST_PROBED)
    check_probed(shards, config.monitor.labeled_images)
    return shards


def check_distinct(shards: ShardSet) -> None:
    """Refuse sets that share a shard: an epoch shows every sample at most once.

    Raises:
        UserError: Two sets share a shard; names them.
    """
    owners: dict[tuple[str, str], int] = {}
    place = 0
    for number, part in enumerate(shards.parts):
        for shard in shards.shards[place : place + len(part.places)]:
            owner = owners.setdefault((shard.sha256, shard.records_sha256), number)
            if owner != number:
                raise UserError(
                    f"{shards.parts[owner].source} and {part.source} have shard {shard.name} in "
                    "common",
                    "list each set once; use data.weights to give a set a larger share",
                )
        place += len(part.places)


def machine_lanes(lanes: int, processes: Processes) -> range:
    """The lanes of all ranks on this machine, whose ranks are consecutive."""
    first = processes.rank - processes.local_rank
    ranks = (first, first + processes.local_world_size - 1)
    low, high = (lanes_of_rank(lanes, rank, processes.world_size) for rank in ranks)
    return range(low.start, high.stop)


def sizes_of(shards: ShardSet | None) -> list[list[int]]:
    """For each data set, the number of samples in each of its shards."""
    if shards is None:
        return [[SYNTHETIC_SAMPLES]]
    return [[count for _, count in part.places] for part in shards.parts]


def data_facts(shards: ShardSet | None) -> DataFacts:
    """What the plan needs to know about the data."""
    if shards is None:
        return DataFacts(SYNTHETIC_SAMPLES, "synthetic", (("synthetic", SYNTHETIC_SAMPLES),))
    sets = tuple((part.source, part.num_samples) for part in shards.parts)
    return DataFacts(shards.num_samples, shards.fingerprint, sets)


def describe_set(each: SetPlan) -> str:
    """One line for a person."""
    if each.times_seen >= 1:
        seen = f"repeated: each is seen {each.times_seen:g} times"
    else:
        seen = f"truncated: {each.times_seen:.2%} of them are seen"
    return f"  {each.source}: {each.num_samples:,} images, {each.share:.1%} of every batch, {seen}"
