"""Micro-batches: images that cannot be decoded, memory, and the numbers that are handed over."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_vit.data.batches import Loaded
from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.dataset import EvaluationBatches, TrainingBatches
from ssl_vit.data.order import SampleRandomness, SampleRef
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.sources import open_shards
from ssl_vit.data.synthetic import SyntheticBatches
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.build import build_views
from ssl_vit.objectives.config import MaeConfig
from tests.pictures import draw_and_render
from tests.synthetic import write_shards

VIEWS = build_views(MaeConfig(), VitConfig(image_size=32, patch_size=8))
SEED = 3


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return open_shards(write_shards(tmp_path))


def spoil(shards: ShardSet, numbers: list[int]) -> None:
    """Overwrite images in their tars."""
    for number in numbers:
        record = shards.record(number)
        with Path(shards.location_of(number)).open("r+b") as file:
            file.seek(int(record["offset"]) + 40)
            file.write(bytes(int(record["length"]) - 40))


def make(shards: ShardSet, refs: list[SampleRef]) -> Loaded:
    maker = TrainingBatches(shards, VIEWS, SEED)
    return maker.make(refs, torch.empty(maker.num_bytes(len(refs)), dtype=torch.uint8))


def test_a_bad_image_is_replaced_by_the_next_of_its_shard(shards: ShardSet):
    end = int(shards.starts[1])  # of the first shard
    refs = [SampleRef(number, 2) for number in (3, 4, end - 1, end)]
    whole = make(shards, refs)
    assert whole.bad == ()
    assert whole.batch.numbers.tolist() == [3, 4, end - 1, end]
    spoil(shards, [3, 4, end - 1])
    loaded = make(shards, refs)
    # 3 is followed by 4, which is bad too; the last of the shard by the first.
    assert loaded.batch.numbers.tolist() == [5, 5, 0, end]
    assert [(bad.number, bad.epoch, bad.replaced_by) for bad in loaded.bad] == [
        (3, 2, 5),
        (4, 2, 5),
        (end - 1, 2, 0),
    ]
    first = loaded.bad[0]
    assert first.key == shards.key(3)
    assert first.shard == shards.location_of(3)
    assert "not a readable image" in first.problem
    # What is whole is what it was, bit by bit.
    assert torch.equal(loaded.batch.images[3], whole.batch.images[3])
    assert make(shards, refs).bad == loaded.bad


def test_a_replacement_is_drawn_with_the_randomness_of_the_one_it_replaces(shards: ShardSet):
    from ssl_vit.data.decode import decode_image

    spoil(shards, [3])
    loaded = make(shards, [SampleRef(3, 0)])
    rng = SampleRandomness(SEED).of(SampleRef(3, 0))
    crops, draw = draw_and_render(VIEWS, decode_image(shards.read(4)), rng)
    assert torch.equal(loaded.batch.images[0], crops[0][0])
    assert np.array_equal(loaded.batch.hidden[0].numpy(), draw.hidden)
    own = make(shards, [SampleRef(4, 0)])
    assert not torch.equal(own.batch.images[0], loaded.batch.images[0])


def test_a_shard_without_a_readable_image_is_a_failure_that_names_it(shards: ShardSet):
    end = int(shards.starts[1])
    spoil(shards, list(range(end)))
    loaded = make(shards, [SampleRef(end, 0), SampleRef(0, 0)])
    assert loaded.batch is None
    assert loaded.failure is not None
    assert shards.location_of(0) in loaded.failure.problem
    assert "no image" in loaded.failure.problem


def test_a_shard_that_cannot_be_read_is_a_failure_and_no_bad_sample(shards: ShardSet):
    Path(shards.location_of(0)).unlink()
    loaded = make(shards, [SampleRef(0, 0)])
    assert loaded.failure is not None
    assert "cannot read shard" in loaded.failure.problem
    assert shards.location_of(0) in loaded.failure.problem


def test_an_evaluation_does_not_replace_but_names_a_bad_image(shards: ShardSet):
    spoil(shards, [3])
    maker = EvaluationBatches(shards, CenterCrop((32, 32)))
    memory = torch.empty(maker.num_bytes(2), dtype=torch.uint8)
    assert maker.make([1, 2], memory).batch.images.shape == (2, 3, 32, 32)
    loaded = maker.make([2, 3], memory)
    assert loaded.failure is not None
    assert shards.key(3) in loaded.failure.problem
    assert shards.location_of(3) in loaded.failure.problem


def test_synthetic_batches_look_like_real_ones_and_repeat(shards: ShardSet):
    refs = [[SampleRef(4 * step + place, 0) for place in range(4)] for step in range(3)]
    real: Any = make(shards, refs[0]).batch
    batches = SyntheticBatches(VIEWS, iter(refs), SEED)
    made = [next(batches).batch for _ in range(3)]
    for name, tensor in real._asdict().items():
        for batch in made:
            other = getattr(batch, name)
            assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype), name
    assert [batch.numbers.tolist() for batch in made] == [[r.number for r in b] for b in refs]
    assert made[0].images.float().std() > 3
    # A sample is the same whatever micro-batch it comes in.
    (whole,) = SyntheticBatches(VIEWS, iter([[ref for each in refs for ref in each]]), SEED)
    assert torch.equal(whole.batch.images, torch.cat([batch.images for batch in made]))
    assert torch.equal(whole.batch.hidden, torch.cat([batch.hidden for batch in made]))
    with pytest.raises(StopIteration):
        next(batches)
    batches.finish()
    batches.close()
