"""The tokenizer's codebook against loops in float64, over ranks and micro-batches."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.objectives.tokenizer.codebook import Codebook, spherical_kmeans
from ssl_vit.objectives.tokenizer.row_sample import RowSample, row_keys
from tests.command_line import run_group
from tests.objectives.codebook_worker import follow_steps


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def started(vectors: Tensor, momentum: float = 0.99, dead_below: float = 0.0) -> Codebook:
    book = Codebook(len(vectors), vectors.shape[1], momentum, dead_below)
    book.vectors.copy_(vectors)
    book.started.fill_(1)
    return book


def nearest_by_loop(latents: Tensor, vectors: Tensor) -> list[int]:
    found = []
    for row in latents.double().tolist():
        cosines = [
            math.fsum(a * b for a, b in zip(row, code, strict=True))
            for code in vectors.double().tolist()
        ]
        found.append(max(range(len(cosines)), key=cosines.__getitem__))
    return found


def test_each_patch_gets_the_code_with_the_largest_cosine() -> None:
    latents, book = unit_rows(3, 5, 8), started(unit_rows(7, 8, seed=1))
    quantized = book(latents, torch.arange(3), step=0)
    expected = nearest_by_loop(latents.flatten(0, 1), book.vectors)
    assert quantized.codes.flatten().tolist() == expected
    assert torch.equal(quantized.vectors, book.vectors[quantized.codes])


def test_a_code_moves_towards_the_normalized_mean_of_its_latents() -> None:
    latents, vectors = unit_rows(4, 6, 5), unit_rows(9, 5, seed=1)
    book = started(vectors, momentum=0.7)
    codes = book(latents, torch.arange(4), step=3).codes.flatten().tolist()
    book.move_codes()
    rows = latents.flatten(0, 1).double().numpy()
    for code in range(9):
        mine = [row for row, of in zip(rows, codes, strict=True) if of == code]
        expected = vectors[code].double().numpy()
        if mine:
            mean = np.sum(mine, axis=0)
            expected = 0.7 * expected + 0.3 * mean / np.linalg.norm(mean)
            expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(book.vectors[code].numpy(), expected, atol=1e-6)
    assert book.last_hits.tolist() == [codes.count(code) for code in range(9)]


@pytest.mark.parametrize("images", [1, 2, 4])
def test_ranks_and_micro_batches_make_the_same_codebook(images: int, tmp_path: Path) -> None:
    """Through k-means, averages and replaced codes; the starting values of the ranks differ."""
    latents = unit_rows(4, 8, 20, 6).numpy()
    keys = np.random.default_rng(0).integers(0, 2**53, (4, 8))
    latents[1:, :, :, 0] += 3  # away from what k-means saw, so that codes die
    latents /= np.linalg.norm(latents, axis=-1, keepdims=True)
    source, target = tmp_path / "given.npz", tmp_path / "found"
    np.savez(source, latents=latents, keys=keys, images=images)
    words = ("-m", "tests.objectives.codebook_worker", source, target)
    for done in run_group([words] * 2):
        assert done.returncode == 0, done.stderr
    alone = follow_steps(latents, keys, images=8)
    for rank in range(2):
        found = np.load(f"{target}.{rank}.npz")
        for name, value in alone.state_dict().items():
            np.testing.assert_allclose(found[name], value.numpy(), atol=1e-6, err_msg=name)
    first, second = (np.load(f"{target}.{rank}.npz")["vectors"] for rank in range(2))
    assert np.array_equal(first, second)


def test_a_dead_code_is_replaced_and_hit_in_the_next_step() -> None:
    ahead, far = torch.tensor([2.0, 0, 0]), torch.tensor([-1.0, 0, 0])
    latents = F.normalize(unit_rows(4, 16, 3) + ahead, dim=-1)  # nothing is near the third code
    book = started(torch.cat([latents[0, :2], far[None]]), momentum=0.5, dead_below=0.2)
    assert 2 not in book(latents, torch.arange(4), step=0).codes
    book.moving_hits.fill_(64 / 3)
    steps = 0
    while torch.equal(book.vectors[2], far):
        book(latents, torch.arange(4), step=steps)
        book.move_codes()
        steps += 1
    assert 1 <= steps <= 3  # 0.5³ of the mean is below a fifth
    assert (latents == book.vectors[2]).all(dim=-1).any()  # one of the step's latents
    assert 2 in book(latents, torch.arange(4), step=steps).codes
    book.move_codes()
    assert book.last_hits[2] > 0


def test_codes_are_never_replaced_at_zero() -> None:
    vectors = torch.cat([unit_rows(2, 3), -unit_rows(1, 3)])
    book = started(vectors, momentum=0.5)
    for step in range(20):
        book(vectors[:2].expand(4, 2, 3), torch.arange(4), step)
        book.move_codes()
    assert torch.equal(book.vectors[2], vectors[2])


def test_a_step_that_is_not_applied_leaves_no_trace() -> None:
    latents, book = unit_rows(2, 4, 5), started(unit_rows(3, 5, seed=1))
    kept = book.vectors.clone()
    book(unit_rows(2, 4, 5, seed=7), torch.arange(2), step=0)  # its gradients were not finite
    book(latents, torch.arange(2), step=1)
    book.move_codes()
    alone = started(kept)
    alone(latents, torch.arange(2), step=1)
    alone.move_codes()
    assert torch.equal(book.vectors, alone.vectors)


def test_until_k_means_a_latent_is_its_own_code() -> None:
    latents, book = unit_rows(8, 16, 4), Codebook(4, 4, start_step=2)
    for step in range(3):
        assert torch.equal(book(latents, torch.arange(8), step).vectors, latents)
        book.move_codes()
        assert book.is_started == (step == 2)
        assert bool(book.usage()) == (step == 2)
    assert not torch.equal(book(latents, torch.arange(8), 3).vectors, latents)


def test_k_means_finds_separate_clusters() -> None:
    centers = torch.eye(4)
    rows = F.normalize(centers.repeat(30, 1) + 0.05 * unit_rows(120, 4), dim=1)
    found = spherical_kmeans(rows, 4)
    assert sorted((found @ centers.T).argmax(dim=1).tolist()) == [0, 1, 2, 3]
    assert (found @ centers.T).amax(dim=1).min() > 0.99
    with pytest.raises(ValueError, match="3 rows cannot become 4 clusters"):
        spherical_kmeans(rows[:3], 4)


def test_a_sample_of_rows_depends_on_names_alone() -> None:
    images, rows = torch.arange(40) * 101, unit_rows(40 * 9, 2)
    keys = row_keys(images, 9)
    whole, parts = RowSample(17), RowSample(17)
    whole.add(keys, rows)
    order = torch.randperm(360, generator=torch.Generator().manual_seed(0))
    for part in order.split(50):
        parts.add(keys[part], rows[part])
    assert torch.equal(whole.over_ranks(11), parts.over_ranks(11))
    assert not torch.equal(keys, row_keys(images + 1, 9))
    assert len(keys.unique()) == 360
    shares = torch.histc((keys >> 40).float(), bins=4)
    assert (shares - 90).abs().max() < 35  # four standard deviations of a uniform hash


def test_usage_is_that_of_the_latest_step() -> None:
    book = started(torch.eye(4))
    rows = torch.eye(4)[torch.tensor([[0, 0, 1, 1]])]
    book(rows, torch.arange(1), step=0)
    book.move_codes()
    found = book.usage()
    assert float(found["codes_used"]) == 0.5
    assert float(found["perplexity"]) == pytest.approx(2.0)
