"""Sampling images of a folder or a tar, spread evenly over all of them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ssl_vit.data.decode import facts_of
from ssl_vit.data.order import permutation
from ssl_vit.data.pages import take_pages
from ssl_vit.progress import progress
from ssl_vit_data_prep.image_counts import ImageCounts
from ssl_vit_data_prep.inspection import read_file
from ssl_vit_data_prep.scan import ImageFile
from ssl_vit_data_prep.shard_writer import PackOptions
from ssl_vit_data_prep.survey import Look, Survey, check_readable, look_at, survey
from ssl_vit_data_prep.tar_images import HashingReader

SAMPLED_IMAGES = 256
"""Most images that are sampled."""


def survey_files(
    images: Path, files: Sequence[ImageFile], options: PackOptions, workers: int
) -> Survey:
    """Survey a sample of all files, whichever set they belong to.

    Raises:
        UserError: Most of them cannot be read.
    """

    places = permutation(len(files), options.shuffle_seed)[:SAMPLED_IMAGES].tolist()
    pages_of_each = -(-SAMPLED_IMAGES // max(1, len(places)))

    def look(turn: int) -> list[Look]:
        found: list[Look] = []
        try:
            data = read_file(images / files[places[turn]].path)
            for page in _pages(data, options, pages_of_each, turn):
                found.append(look_at(page))
        except ValueError as error:  # a RefusedError is one
            found.append(Look(str(error)))
        advance(1)
        return found

    # Threads: decoders release the GIL, and a process would take longer to start.
    with (
        progress("sampling", len(places), "images") as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        looks = [each for found in pool.map(look, range(len(places))) for each in found]
    check_readable(looks, images)
    return survey(looks, options.values, options.no_data)


def _pages(data: bytes, options: PackOptions, most: int, turn: int) -> Iterator[bytes]:
    """The images that would be packed from a file: itself, its middle page, or some of its pages.

    Args:
        most: Most pages per file.
        turn: Number of the file, which decides on the pages if it has more.
    """
    count = 1 if options.page == "first" else facts_of(data).num_pages
    if count == 1:
        yield data
        return
    numbers = {count // 2}
    if options.page == "each":
        wanted = min(most, count)
        numbers = {(turn + place * count // wanted) % count for place in range(wanted)}
    for page, _ in take_pages(data, sorted(numbers)):
        yield page


def num_sampled(number: int, num_shards: int) -> int:
    """Number of images to sample in one shard, so that they are spread over all shards."""
    return SAMPLED_IMAGES * (number + 1) // num_shards - SAMPLED_IMAGES * number // num_shards


def sample_tar(
    reader: HashingReader, records: np.ndarray, count: int
) -> tuple[ImageCounts, list[Look]]:
    """Sample some images of a shard.

    Args:
        reader: The open tar.
        records: (N,) of ``SAMPLE_RECORD``.
        count: Number of images to sample, if there are as many.
    """
    counts, looks = ImageCounts(), []
    places = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))
    for record in records[places]:
        data = reader.at(int(record["offset"]), int(record["length"]))
        looks.append(look_at(data))
        if not looks[-1].problem:
            counts = counts.add(facts_of(data))
    return counts, looks
