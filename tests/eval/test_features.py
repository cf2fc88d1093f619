"""Features against a forward pass over images transformed by Pillow and numpy."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.data.config import IMAGENET_MEAN, IMAGENET_STD
from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.models.config import VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit_eval.baselines import Split, random_backbone, raw_pixels, remove_mean
from ssl_vit_eval.features import BackboneEncoder, extract
from tests.faulty_server import serving
from tests.pictures import center_crop

CPU = torch.device("cpu")
CROP = CenterCrop((32, 32), 0.875)
LABELS = [2, 0, 1, -1, 1, 0, 2, 2, -1, 0, 1]


@pytest.fixture
def encoders(config: VitConfig):
    torch.manual_seed(0)
    backbone = VisionTransformer(config)
    return {
        "network": BackboneEncoder(backbone, IMAGENET_MEAN, IMAGENET_STD),
        "pixels": raw_pixels,
    }


def by_hand(file: bytes) -> torch.Tensor:
    """(3, 32, 32) in [0, 1]: Pillow's version of the transform.

    The shorter side to 32 · 256/224 = 37 pixels, of which 32 are kept: 40 · 32/37 → 35 before.
    """
    image = Image.open(io.BytesIO(file))
    left, top = (image.width - 35) // 2, (image.height - 35) // 2
    cut = image.crop((left, top, left + 35, top + 35))
    small = cut.resize((32, 32), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255


def test_features_equal_a_direct_forward_in_index_order_of_the_labeled(make_shards, encoders):
    shards = open_shards(make_shards("some", LABELS, seed=0))
    found = extract(encoders, shards, CROP, 4, 0, CPU)
    labeled = [number for number, label in enumerate(LABELS) if label >= 0]
    images = torch.stack([by_hand(shards.read(number)) for number in labeled])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = encoders["network"].backbone((images - mean) / std)
    assert found.labels.tolist() == [LABELS[number] for number in labeled]
    # Pillow rounds its own way: one gray level.
    pixels = found.by_encoder["pixels"]["pixels"].view(-1, 3, 32, 32)
    assert (pixels - images).abs().max() < 1.5 / 255
    network = found.by_encoder["network"]
    torch.testing.assert_close(network["cls"], expected.cls, atol=0.02, rtol=0)
    torch.testing.assert_close(network["mean"], expected.patches.mean(1), atol=0.02, rtol=0)
    # Wrong order would be far outside that tolerance.
    assert (network["mean"] - expected.patches.mean(1).roll(1, 0)).abs().max() > 0.1


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (64, 0), (4, 1)])
def test_batch_size_and_workers_do_not_change_features(make_shards, encoders, batch_size, workers):
    shards = open_shards(make_shards("some", LABELS, seed=0))
    expected = extract(encoders, shards, CROP, 3, 0, CPU)
    found = extract(encoders, shards, CROP, batch_size, workers, CPU)
    for name, kinds in expected.by_encoder.items():
        for kind, values in kinds.items():
            torch.testing.assert_close(found.by_encoder[name][kind], values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(make_shards, encoders, workers):
    folder = make_shards("bad", [0, 1], seed=0, broken=[1])
    with pytest.raises(
        UserError, match=r"sample image0001 in shard .* cannot be decoded"
    ) as caught:
        extract(encoders, open_shards(folder), CROP, 2, workers, CPU)
    assert caught.value.remedy.startswith(f"ssl-vit shards check {folder}  lists every such image")
    assert "\n" not in caught.value.problem


def test_remote_shards_give_the_features_of_local_ones(
    make_shards, encoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSL_VIT_CACHE", str(tmp_path / "cache"))
    folder = make_shards("some", LABELS, seed=0)
    expected = extract(encoders, open_shards(folder), CROP, 4, 1, CPU)
    with serving(folder, ["500"]) as server:
        found = extract(encoders, open_shards(server.url), CROP, 4, 1, CPU)
    assert torch.equal(found.labels, expected.labels)
    for name, kinds in expected.by_encoder.items():
        for kind, values in kinds.items():
            assert torch.equal(found.by_encoder[name][kind], values)


def test_a_damaged_shard_ends_an_evaluation_by_name(make_shards, encoders):
    folder = make_shards("some", LABELS, seed=0)
    path = folder / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-000000\.tar is damaged"):
        extract(encoders, open_shards(folder), CROP, 4, 1, CPU)


def test_a_crop_ratio_of_one_keeps_the_whole_shorter_side():
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    image[:, 8:56] = 200  # the central square
    assert center_crop(image, 32, 1.0).unique().tolist() == [200]
    image[0] = 0  # its outermost row
    assert center_crop(image, 32, 1.0).min() < 200
    assert center_crop(image, 32, 0.875).unique().tolist() == [200]


def test_raw_pixels_are_block_means():
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    blocks = pixels.numpy().reshape(2, 3, 32, 3, 32, 3).mean(axis=(3, 5)) / 255
    found = raw_pixels(pixels)["pixels"]
    torch.testing.assert_close(found, torch.from_numpy(blocks).float().flatten(1))


def test_the_mean_that_is_removed_is_trains():
    split = remove_mean(Split(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[2.0, 4.0]])))
    assert split.train.tolist() == [[-1, -2], [1, 2]]
    assert split.test.tolist() == [[0, 0]]


def test_the_random_baseline_is_always_the_same_and_leaves_the_seed_alone(config):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = random_backbone(config), random_backbone(config)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
