"""MAE against a float64 loop, and its pictures against what they must show."""

import pickle
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.data.views import Sample
from ssl_vit.models.config import VitConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.config import MaeConfig
from ssl_vit.objectives.mae.objective import Mae
from ssl_vit.objectives.one_crop.views import MaskedBatch, RandomPatchViews
from ssl_vit.objectives.pixels import PixelScale
from tests.pictures import draw_and_render

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, PATCH, SIDE, HIDDEN = 32, 8, 4, 12  # pixels, pixels, patches, patches
FRAME = 2  # white pixels around every picture of a panel


class MaeSample(NamedTuple):
    image: Tensor
    """(3, S, S) uint8."""
    hidden: np.ndarray
    """(N,) bool."""


def backbone_config(**changes: Any) -> VitConfig:
    base = VitConfig(width=32, depth=2, heads=2, patch_size=PATCH, image_size=SIZE)
    return base.model_copy(update=changes)


def mae_config(**changes: Any) -> MaeConfig:
    base = MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)
    return base.model_copy(update=changes)


def make_mae(backbone: VitConfig | None = None, config: MaeConfig | None = None) -> Mae:
    torch.manual_seed(0)
    model = VisionTransformer(backbone or backbone_config())
    return Mae(config or mae_config(), model, PixelScale(MEAN, STD))


def make_batch(size: int = 3, seed: int = 0) -> MaskedBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    hidden = torch.rand(size, SIDE * SIDE, generator=generator).argsort(dim=1) < HIDDEN
    return MaskedBatch(images, hidden, torch.arange(size))


def loop_targets(batch: MaskedBatch, normalize: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, and each patch's mean and spread, in float64 with nothing but loops.

    Returns:
        (B, M, P × P × 3), and (B, M) twice.
    """
    pixels = batch.images.numpy().astype(np.float64) / 255
    for channel in range(3):
        pixels[:, channel] = (pixels[:, channel] - MEAN[channel]) / STD[channel]
    targets = np.empty((len(pixels), HIDDEN, PATCH * PATCH * 3))
    means, spreads = np.empty((len(pixels), HIDDEN)), np.empty((len(pixels), HIDDEN))
    for image in range(len(pixels)):
        hidden_patches = [n for n in range(SIDE * SIDE) if batch.hidden[image, n]]
        for place, patch in enumerate(hidden_patches):
            top, left = patch // SIDE * PATCH, patch % SIDE * PATCH
            values = [
                pixels[image, channel, top + y, left + x]
                for y in range(PATCH)
                for x in range(PATCH)
                for channel in range(3)
            ]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            spread = (variance + 1e-6) ** 0.5
            means[image, place], spreads[image, place] = mean, spread
            targets[image, place] = (
                [(value - mean) / spread for value in values] if normalize else values
            )
    return targets, means, spreads


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_the_loss_is_that_of_a_float64_loop(
    normalize: bool, stem: Literal["patch", "conv"]
) -> None:
    mae = make_mae(backbone_config(stem=stem), mae_config(normalize_targets=normalize))
    batch = make_batch()

    output = mae(batch, 0)

    predictions = mae.reconstruct(mae.pixel_scale(batch.images), batch.hidden)
    assert predictions.shape == (3, HIDDEN, PATCH * PATCH * 3)
    targets, _, _ = loop_targets(batch, normalize)
    errors = (predictions.detach().double().numpy() - targets) ** 2
    assert output.loss.item() == pytest.approx(errors.mean(), rel=1e-5)
    assert output.loss.dtype == torch.float32
    assert output.loss.ndim == 0


def test_the_loss_is_float32_under_autocast() -> None:
    mae, batch = make_mae(), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mae(batch, 0).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(mae(batch, 0).loss.item(), rel=0.02)


def repaint(batch: MaskedBatch, where: Tensor) -> MaskedBatch:
    """Replace the patches where (B, N) ``where`` is true with other noise."""
    pixels = where.view(-1, 1, SIDE, SIDE).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    images = torch.where(pixels, make_batch(seed=9).images, batch.images)
    return batch._replace(images=images)


def test_only_hidden_patches_enter_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    mae, batch = make_mae(), make_batch()
    fixed = torch.randn(3, HIDDEN, PATCH * PATCH * 3)
    monkeypatch.setattr(mae.decoder, "forward", lambda *_: fixed)
    loss = mae(batch, 0).loss
    assert mae(repaint(batch, ~batch.hidden), 0).loss == loss
    assert mae(repaint(batch, batch.hidden), 0).loss != loss


@torch.no_grad()
def test_predictions_do_not_know_the_hidden_pixels_but_know_the_visible_ones() -> None:
    mae, batch = make_mae(), make_batch()

    def predict(seen: MaskedBatch) -> Tensor:
        return mae.reconstruct(mae.pixel_scale(seen.images), seen.hidden)

    assert torch.equal(predict(repaint(batch, batch.hidden)), predict(batch))
    assert not torch.allclose(predict(repaint(batch, ~batch.hidden)), predict(batch), atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "learned"},
        {"position": "sincos", "stem": "conv"},
        {"registers": 2, "layer_scale": 0.1, "feed_forward": "swiglu"},
    ],
)
def test_the_gradient_reaches_every_parameter(changes: dict[str, Any]) -> None:
    mae = make_mae(backbone_config(**changes))
    mae(make_batch(), 0).loss.backward()
    still = [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_matrices_decay_and_vectors_tokens_and_positions_do_not() -> None:
    mae = make_mae(backbone_config(registers=2, position="learned"))
    decayed, plain = mae.parameter_groups()
    names = {parameter: name for name, parameter in mae.named_parameters()}
    kept = {names[p] for p in plain.parameters}
    assert {"backbone.cls_token", "backbone.reg_token", "backbone.pos_embed"} < kept
    assert "decoder.mask_token" in kept
    assert all(p.ndim > 1 for p in decayed.parameters)
    assert len(decayed.parameters) + len(plain.parameters) == len(names)
    assert (decayed.weight_decay_scale, plain.weight_decay_scale) == (1.0, 0.0)
    others = [name for name in kept if not name.endswith(("_token", "pos_embed"))]
    assert all(mae.get_parameter(name).ndim == 1 for name in others)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def sample(views: RandomPatchViews, image: np.ndarray, rng: np.random.Generator) -> MaeSample:
    """One image as a data worker makes it."""
    crops, draw = draw_and_render(views, image, rng)
    return MaeSample(crops[0][0], draw.hidden)


def test_views_are_fixed_by_their_randomness_alone() -> None:
    views = RandomPatchViews(mae_config(), backbone_config())
    image = picture()
    original = image.copy()
    first = sample(views, image, rng(1))
    again = sample(pickle.loads(pickle.dumps(views)), image, rng(1))
    other = sample(views, image, rng(2))

    assert np.array_equal(image, original)
    assert torch.equal(first.image, again.image)
    assert np.array_equal(first.hidden, again.hidden)
    assert not torch.equal(first.image, other.image)
    assert not np.array_equal(first.hidden, other.hidden)


def test_a_sample_is_a_crop_and_a_mask_of_the_exact_size() -> None:
    views = RandomPatchViews(mae_config(), backbone_config())
    for seed in range(20):
        made = sample(views, picture(), rng(seed))
        assert made.image.shape == (3, SIZE, SIZE)
        assert made.image.dtype == torch.uint8
        assert made.hidden.shape == (SIDE * SIDE,)
        assert made.hidden.sum() == HIDDEN


@pytest.mark.parametrize(
    ("flip", "axes"), [({"horizontal_flip": 1.0}, [2]), ({"vertical_flip": 1.0}, [1])]
)
def test_a_flip_mirrors_the_same_crop_and_leaves_the_mask(
    flip: dict[str, float], axes: list[int]
) -> None:
    never = {"horizontal_flip": 0.0, "vertical_flip": 0.0}
    straight = sample(RandomPatchViews(mae_config(**never), backbone_config()), picture(), rng(3))
    flipped = sample(
        RandomPatchViews(mae_config(**(never | flip)), backbone_config()), picture(), rng(3)
    )
    assert torch.equal(flipped.image, straight.image.flip(axes))
    assert np.array_equal(flipped.hidden, straight.hidden)


def test_half_of_the_samples_are_flipped_by_default() -> None:
    never = mae_config(horizontal_flip=0.0)
    straight, views = (RandomPatchViews(c, backbone_config()) for c in (never, mae_config()))
    same = sum(
        torch.equal(
            sample(straight, picture(), rng(s)).image, sample(views, picture(), rng(s)).image
        )
        for s in range(400)
    )
    assert 150 < same < 250  # five standard deviations


def test_a_crop_of_the_whole_area_at_its_own_size_is_the_image() -> None:
    whole = mae_config(min_crop_area=1.0, horizontal_flip=0.0)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    views = RandomPatchViews(whole, backbone_config())
    samples = [sample(views, image, rng(seed)).image for seed in range(40)]
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    # At this area only the square fits, and a random aspect ratio rarely hits it; the fallback is
    # the largest fitting rectangle, which is the whole image.
    assert all(torch.equal(made, pixels) for made in samples)


def test_a_batch_keeps_the_samples_order_and_numbers() -> None:
    views = RandomPatchViews(mae_config(), backbone_config())
    drawn = [draw_and_render(views, picture(seed), rng(seed)) for seed in range(3)]
    crops = torch.stack([crops[0] for crops, _ in drawn], dim=1)  # (1, B, 3, S, S)
    batch = views.collate(
        [crops], [draw for _, draw in drawn], [Sample(number, -1) for number in (7, 2**40, 5)]
    )
    assert batch.numbers.tolist() == [7, 2**40, 5]
    for row, (its_crops, draw) in enumerate(drawn):
        assert torch.equal(batch.images[row], its_crops[0][0])
        assert np.array_equal(batch.hidden[row].numpy(), draw.hidden)
    assert (batch.images.dtype, batch.hidden.dtype) == (torch.uint8, torch.bool)


def test_what_is_shown_of_a_sample_is_the_crop_and_what_the_encoder_sees_of_it() -> None:
    views = RandomPatchViews(mae_config(), backbone_config())
    crops, draw = draw_and_render(views, picture() | 1, rng(0))  # no pixel is 0
    crop, seen = views.show(crops, draw)
    assert torch.equal(crop, crops[0][0])
    for patch in range(SIDE * SIDE):
        top, left = patch // SIDE * PATCH, patch % SIDE * PATCH
        inside = (slice(None), slice(top, top + PATCH), slice(left, left + PATCH))
        expected = torch.zeros_like(crop[inside]) if draw.hidden[patch] else crop[inside]
        assert torch.equal(seen[inside], expected)


def columns_of(panel: torch.Tensor) -> torch.Tensor:
    """(3 columns, B, 3, H, W) of a panel, without its white frames."""
    framed = SIZE + 2 * FRAME
    cells = panel.view(3, -1, framed, 3, framed).permute(3, 1, 0, 2, 4)
    frame = torch.ones(framed, framed, dtype=torch.bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    assert (cells[..., frame] == 255).all()
    return cells[..., FRAME:-FRAME, FRAME:-FRAME]


@pytest.mark.parametrize("size", [1, 3, 11])
def test_a_panel_shows_up_to_eight_images_in_three_columns(size: int) -> None:
    panel = make_mae().panels(make_batch(size))["reconstruction"]
    assert panel.dtype == torch.uint8
    assert panel.shape == (3, min(size, 8) * (SIZE + 2 * FRAME), 3 * (SIZE + 2 * FRAME))


@pytest.mark.parametrize("normalize", [True, False])
def test_a_panel_of_perfect_predictions_is_the_original(
    normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mae, batch = make_mae(config=mae_config(normalize_targets=normalize)), make_batch()
    targets, _, _ = loop_targets(batch, normalize)
    perfect = torch.from_numpy(targets).float()
    monkeypatch.setattr(mae, "reconstruct", lambda images, hidden: perfect)

    original, seen, rebuilt = columns_of(mae.panels(batch)["reconstruction"])

    assert torch.equal(original, batch.images)
    assert (rebuilt.int() - batch.images.int()).abs().max() <= 1
    pixels = batch.hidden.view(-1, 1, SIDE, SIDE).repeat_interleave(PATCH, 2)
    pixels = pixels.repeat_interleave(PATCH, 3).expand_as(batch.images)
    assert torch.equal(seen[~pixels], batch.images[~pixels])
    gray = torch.tensor(MEAN).mul(255).round().to(torch.uint8).view(1, 3, 1, 1)
    assert torch.equal(seen[pixels], gray.expand_as(seen)[pixels])


def test_a_panel_of_zeros_shows_each_patchs_own_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    mae, batch = make_mae(), make_batch()
    nothing = torch.zeros(3, HIDDEN, PATCH * PATCH * 3)
    monkeypatch.setattr(mae, "reconstruct", lambda images, hidden: nothing)

    rebuilt = columns_of(mae.panels(batch)["reconstruction"])[2][0]  # of the first image

    _, means, _ = loop_targets(batch, normalize=True)
    patch = int(batch.hidden[0].nonzero()[0])
    top, left = patch // SIDE * PATCH, patch % SIDE * PATCH
    shown = rebuilt[:, top : top + PATCH, left : left + PATCH]
    for channel in range(3):
        expected = min(max(255 * (means[0, 0] * STD[channel] + MEAN[channel]), 0), 255)
        assert (shown[channel].float() - expected).abs().max() <= 0.51
