"""Our losses and targets against lightly's, on the same random tensors in float32.

lightly's definitions follow the code of Caron et al. and Oquab et al., without distribution. Unless
a comment states otherwise, values and gradients are compared without any scaling.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.models.config import VitConfig
from ssl_vit.models.torchvision_ops import define_missing_ops
from ssl_vit.objectives.config import DinoConfig
from ssl_vit.objectives.dino.heads import ProjectionHead
from ssl_vit.objectives.dino.losses import Center, koleo, patch_loss, sinkhorn, view_loss
from ssl_vit.objectives.dino.views import DinoViews

define_missing_ops()
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss  # noqa: E402 - it imports torchvision
from lightly.loss.swav_loss import sinkhorn as swav_sinkhorn  # noqa: E402
from lightly.models.modules import DINOProjectionHead  # noqa: E402

TEMPERATURE = 0.1  # the student's
TEACHER_TEMPERATURES = (0.04, 0.055, 0.07)  # of three steps
PATCH, SIDE = 16, 14


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def twice(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Two leaf tensors with the same values."""
    return tensor.clone().requires_grad_(), tensor.clone().requires_grad_()


def assert_same(ours: Tensor, theirs: Tensor, leaves: tuple[Tensor, Tensor]) -> None:
    """Compare values, and gradients at the leaves."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 2, 1, 7), (2, 4, 3, 24), (2, 10, 5, 333), (1, 3, 4, 64)])
def test_view_loss_and_its_center_are_those_of_dino_loss(shape: tuple[int, int, int, int]):
    num_targets, num_views, images, prototypes = shape
    oracle = DINOLoss(prototypes, student_temp=TEMPERATURE, center_momentum=0.8)
    center = Center(prototypes, momentum=0.8)
    for step, temperature in enumerate(TEACHER_TEMPERATURES):
        # From the second step on the center matters, because these logits have a nonzero mean.
        logits = random(num_targets, images, prototypes, seed=step) + 2
        leaves = twice(random(num_views, images, prototypes, seed=10 + step))
        targets = center(logits.flatten(0, 1), temperature, step).unflatten(
            0, (num_targets, images)
        )
        ours = view_loss(targets, leaves[0], TEMPERATURE)
        theirs = oracle(list(logits), list(leaves[1]), teacher_temp=temperature)
        assert_same(ours, theirs, leaves)
        # Theirs has been updated by now; ours is updated after the step.
        center.follow()
        torch.testing.assert_close(center.center, oracle.center.flatten(), rtol=1e-5, atol=1e-6)


def test_micro_batches_move_our_center_as_one_batch_moves_theirs():
    # Theirs would be updated at every micro-batch, and the second be centered by the first.
    logits = random(2, 6, 24, seed=0) + 2
    oracle, center = DINOLoss(24), Center(24)
    oracle.update_center(logits)
    for part in logits.flatten(0, 1).split([5, 7]):
        center(part, 0.07, step=0)
    center.follow()
    torch.testing.assert_close(center.center, oracle.center.flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("images", "prototypes"), [(1, 7), (3, 48), (6, 333)])
def test_patch_loss_and_its_center_are_those_of_ibot_patch_loss(images: int, prototypes: int):
    views = DinoViews(DinoConfig(), VitConfig(patch_size=PATCH, image_size=PATCH * SIDE))
    rng = np.random.Generator(np.random.Philox(1))
    oracle = IBOTPatchLoss(prototypes, student_temp=TEMPERATURE)
    center = Center(prototypes)
    for step, temperature in enumerate(TEACHER_TEMPERATURES):
        hidden = np.stack([views._draw_hidden(rng) for _ in range(2 * images)])
        hidden[0, 0] = True  # at least one patch
        masked, weights = map(torch.from_numpy, views._pad(hidden))
        mask = torch.from_numpy(hidden).unflatten(1, (SIDE, SIDE))
        logits = random(2 * images * SIDE * SIDE, prototypes, seed=step) + 2
        leaves = twice(random(2 * images * SIDE * SIDE, prototypes, seed=10 + step))
        # Ours also has padding rows of weight 0. Both divide by all views, masked or not.
        targets = center(logits[masked], temperature, step, weights > 0)
        ours = patch_loss(targets, leaves[0][masked], weights, TEMPERATURE)
        selected = mask.flatten()
        theirs = oracle(logits[selected], leaves[1][selected], mask, teacher_temp=temperature)
        assert_same(ours, theirs, leaves)
        center.follow()
        value = oracle.center.value.flatten()
        torch.testing.assert_close(center.center, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (7, 16), (32, 384)])
def test_koleo_is_koleo_loss(shape: tuple[int, int]):
    # Theirs adds 1e-8 to every coordinate's difference as well as to the distance. This matters
    # only for duplicates: at a distance of 0 it gives −log(1e-8 (1 + √D)), ours −log(1e-8).
    leaves = twice(random(*shape, seed=0))
    assert_same(koleo(leaves[0]), KoLeoLoss()(leaves[1]), leaves)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("shape", [(5, 5), (24, 64), (100, 333)])
def test_sinkhorn_is_that_of_swav(shape: tuple[int, int], iterations: int):
    # DINOLoss has a moving average only; this is the function of their SwAVLoss. It does not
    # rescale the exponentials, so the logits have to be small, like cosines over the temperature.
    logits = random(*shape, seed=0).clamp(-3, 3) / 3
    theirs = swav_sinkhorn(logits, iterations, epsilon=0.05)
    torch.testing.assert_close(
        sinkhorn(logits, 0.05, iterations=iterations), theirs, rtol=1e-4, atol=1e-7
    )


def test_our_head_is_their_head():
    torch.manual_seed(0)
    ours = ProjectionHead(width=12, hidden=32, layers=3, bottleneck=8, prototypes=40)
    theirs = DINOProjectionHead(12, 32, 8, 40)
    state = ours.state_dict()
    # Theirs stores the prototypes' lengths (fixed at 1) separately from their directions.
    state["last_layer.weight_g"] = torch.ones(40, 1)
    state["last_layer.weight_v"] = state.pop("prototypes.weight")
    theirs.load_state_dict(state)
    leaves = twice(random(6, 12, seed=1))
    assert_same(ours(leaves[0]).square().sum(), theirs(leaves[1]).square().sum(), leaves)
    torch.testing.assert_close(
        ours.prototypes.weight.grad, theirs.last_layer.weight_v.grad, rtol=1e-4, atol=1e-7
    )
