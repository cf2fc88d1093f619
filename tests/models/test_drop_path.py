"""Stochastic depth against a loop over samples, and what it must not affect."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_vit.models.block import Block
from ssl_vit.models.drop_path import add_branch

WIDTH = 16
RATE, BATCH, KEPT = 0.4, 10, 6


def tokens_of(batch: int, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, WIDTH, generator=generator, **options)


def make_block(**options: Any) -> Block:
    torch.manual_seed(0)
    return Block(WIDTH, heads=2, **{"drop_path": RATE} | options)


class Recorded(nn.Module):
    """A branch that records its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.inputs = torch.empty(0)

    def forward(self, tokens: Tensor) -> Tensor:
        self.inputs = tokens.detach()
        return self.layer(tokens).tanh()


def kept_of(inputs: Tensor, tokens: Tensor) -> list[int]:
    """Indices of the samples in a branch's input, in its order."""
    places = [(tokens == sample).flatten(1).all(dim=1).nonzero().flatten() for sample in inputs]
    assert all(len(place) == 1 for place in places)
    return [int(place) for place in places]


@pytest.mark.parametrize(
    ("batch", "rate", "kept"),
    [
        (10, 0.4, 6),
        (8, 0.3, 6),  # 5.6
        (8, 0.1, 7),  # 7.2
        (64, 0.4, 38),  # 38.4
        (4, 0.1, 4),  # 3.6: too few to leave one out
        (2, 0.9, 1),
        (1, 0.9, 1),
        (5, 0.0, 5),
        (0, 0.4, 0),
    ],
)
def test_both_branches_are_computed_for_exactly_so_many_samples(batch: int, rate: float, kept: int):
    block = make_block(drop_path=rate)
    counts = []
    for layer in (block.attn, block.mlp):
        layer.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    assert block(tokens_of(batch)).shape == (batch, 3, WIDTH)
    assert counts == [kept, kept]


def test_it_is_a_loop_over_the_samples_that_are_kept():
    branch, tokens = Recorded(), tokens_of(BATCH)
    result = add_branch(tokens, branch, RATE)
    kept = kept_of(branch.inputs, tokens)
    assert len(set(kept)) == KEPT
    for sample in range(BATCH):
        alone = tokens[sample]
        if sample in kept:
            expected = alone + BATCH / KEPT * branch.layer(alone).tanh()
            torch.testing.assert_close(result[sample], expected)
        else:
            assert torch.equal(result[sample], alone)


def test_every_sample_is_kept_as_often_and_the_mean_is_the_whole_branch():
    draws = 4000
    torch.manual_seed(0)
    # A branch of ones: the sum added to a sample counts how often it was kept, times the scale.
    added = torch.stack(
        [add_branch(torch.zeros(BATCH, 1, 1), torch.ones_like, RATE) for _ in range(draws)]
    ).view(draws, BATCH)
    torch.testing.assert_close(added.sum(dim=1), torch.full((draws,), float(BATCH)))
    # Five standard errors: the variance of one draw is B / S - 1.
    most = 5 * ((BATCH / KEPT - 1) / draws) ** 0.5
    assert (added.mean(dim=0) - 1).abs().max() < most


def test_the_two_branches_of_a_block_draw_samples_of_their_own():
    block, tokens, drawn = make_block(drop_path=0.5), tokens_of(40), []
    with torch.no_grad():
        for parameter in block.attn.parameters():
            parameter.zero_()  # so that both branches have the same input
    for norm in (block.norm1, block.norm2):
        norm.register_forward_pre_hook(lambda _, inputs: drawn.append(kept_of(inputs[0], tokens)))
    for _ in range(3):
        block(tokens)
    assert len({tuple(sorted(kept)) for kept in drawn}) == 6


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
def test_in_evaluation_nothing_is_dropped(layer_scale: float):
    dropping, plain = (make_block(layer_scale=layer_scale, drop_path=rate) for rate in (0.9, 0.0))
    assert list(dropping.state_dict()) == list(plain.state_dict())
    tokens = tokens_of(BATCH)
    assert torch.equal(dropping.eval()(tokens), plain.eval()(tokens))
    assert torch.equal(dropping.eval()(tokens), plain.train()(tokens))


def test_gradients_are_those_of_finite_differences():
    tokens = tokens_of(BATCH, dtype=torch.float64).requires_grad_()
    weight = torch.linspace(-1, 1, WIDTH, dtype=torch.float64, requires_grad=True)

    def seeded(tokens: Tensor, weight: Tensor) -> Tensor:
        torch.manual_seed(0)
        return add_branch(tokens, lambda kept: (kept * weight).tanh(), RATE)

    assert torch.autograd.gradcheck(seeded, (tokens, weight))


def test_samples_that_are_left_out_teach_the_branch_nothing():
    branch, tokens = Recorded(), tokens_of(BATCH).requires_grad_()
    add_branch(tokens, branch, RATE).sum().backward()
    kept = kept_of(branch.inputs, tokens.detach())
    left_out = sorted(set(range(BATCH)) - set(kept))
    assert tokens.grad is not None
    assert torch.equal(tokens.grad[left_out], torch.ones(BATCH - KEPT, 3, WIDTH))
    assert (tokens.grad[kept] != 1).any(dim=2).all()
    alone = Recorded()
    alone.load_state_dict(branch.state_dict())
    (BATCH / KEPT * alone(tokens.detach()[kept])).sum().backward()
    torch.testing.assert_close(branch.layer.weight.grad, alone.layer.weight.grad)


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
def test_under_autocast_tokens_stay_float32_and_differ_by_rounding_only(layer_scale: float):
    block, found = make_block(layer_scale=layer_scale), []
    for enabled in (False, True):
        block.zero_grad()
        tokens = tokens_of(BATCH).requires_grad_()
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = block(tokens)
        assert result.dtype == torch.float32
        result.square().mean().backward()
        found.append([result, tokens.grad, *(p.grad for p in block.parameters())])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 0.02 * exact.norm()


def test_the_gradient_of_the_kept_is_added_to_the_one_that_passes():
    """Without a tensor of zeros of the size of all tokens."""
    tokens = torch.rand(8, 3, 4, requires_grad=True)
    torch.manual_seed(0)
    result = add_branch(tokens, lambda kept: kept * kept, 0.5)
    found = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found.append(str(func))
            return func(*args, **(kwargs or {}))

    with Names():
        result.square().sum().backward()
    assert not [name for name in found if "zeros" in name]
    own = tokens.detach().clone().requires_grad_()
    torch.manual_seed(0)
    kept = torch.randperm(8)[:4]
    own.index_add(0, kept, own[kept] * own[kept], alpha=2).square().sum().backward()
    torch.testing.assert_close(tokens.grad, own.grad)
