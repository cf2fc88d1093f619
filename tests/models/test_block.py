"""A block that is asked for some of its tokens."""

import torch

from ssl_vit.models.block import Block
from ssl_vit.models.patches import take


def test_some_tokens_are_those_of_all_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    block, wanted = Block(24, 3, layer_scale=0.5), torch.tensor([[4, 1, 3], [0, 2, 4]])
    found = []
    for ask in (False, True):
        tokens = torch.linspace(-1, 1, 2 * 5 * 24).sin().view(2, 5, 24).requires_grad_()
        block.zero_grad()
        result = block(tokens, None, wanted) if ask else take(block(tokens), wanted)
        assert result.shape == (2, 3, 24)
        result.square().sum().backward()
        found.append([result, tokens.grad, *(each.grad.clone() for each in block.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
