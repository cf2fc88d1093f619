"""The tokenizer's loss, gradients and targets against loops, and its export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from ssl_vit.data.config import DataConfig
from ssl_vit.data.views import Sample
from ssl_vit.errors import UserError
from ssl_vit.exports.folder import ExportInfo, write_export
from ssl_vit.exports.loading import load_tokenizer
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.config import TokenizerConfig
from ssl_vit.objectives.given import GivenNetwork
from ssl_vit.objectives.one_crop.pairs import PairedBatch
from ssl_vit.objectives.tokenizer.objective import Tokenizer
from ssl_vit.recipes import find_recipe

BACKBONE = VitConfig(width=32, depth=1, heads=2, patch_size=4, image_size=(16, 24))
TEACHER = VitConfig(width=48, depth=2, heads=3, patch_size=8, image_size=64)
GIVEN = GivenNetwork(
    sha256="0", backbone=TEACHER, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.6, 0.7)
)


def build(started: bool = True, **settings: Any) -> Tokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(codebook_size=8, code_dim=4, **settings)
    if config.target == "features":
        config = config.model_copy(update={"teacher_info": GIVEN})
    objective = build_objective(config, build_backbone(BACKBONE), DataConfig(), 10)
    assert isinstance(objective, Tokenizer)
    objective.network.codebook.started.fill_(int(started))
    return objective


def batch_of(count: int, objective: Tokenizer) -> PairedBatch:
    views, rng = build_views(objective.config, BACKBONE), np.random.default_rng(0)
    draws = [views.draw(40, 50, rng) for _ in range(count)]
    crops = [
        torch.from_numpy(rng.integers(0, 256, (1, count, 3, *size), dtype=np.uint8))
        for _, size in views.crop_sizes
    ]
    return views.collate(crops, draws, [Sample(number, -1) for number in range(count)])


def latents_of(objective: Tokenizer, batch: PairedBatch) -> Tensor:
    features = objective.backbone(objective.pixel_scale(batch.images))
    return objective.network.latents(features)


def test_the_loss_is_one_minus_cosine_plus_commitment() -> None:
    """In float64, patch by patch."""
    objective = build(target="features", commitment=0.7)
    batch = batch_of(3, objective)
    codebook = objective.network.codebook.vectors.double()
    teacher = objective.frozen()[0]
    seen = (
        batch.given_images.double() / 255 - torch.tensor(GIVEN.pixel_mean).view(3, 1, 1).double()
    ) / (torch.tensor(GIVEN.pixel_std).view(3, 1, 1).double())
    targets = teacher.network(seen.float()).patches.double()
    latents = latents_of(objective, batch)
    codes = (latents.double() @ codebook.T).argmax(dim=2)
    predicted = objective.decoder(codebook[codes].float()).double()
    fidelity, commitment = [], []
    for image in range(3):
        for patch in range(24):
            ours, theirs = predicted[image, patch], targets[image, patch]
            fidelity.append(1 - ours @ theirs / ours.norm() / theirs.norm())
            apart = latents[image, patch].double() - codebook[codes[image, patch]]
            commitment.append((apart**2).mean())
    expected = torch.stack(fidelity).mean() + 0.7 * torch.stack(commitment).mean()
    output = objective(batch, 0)
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-5, atol=0)
    assert float(output.metrics["cosine"]) == pytest.approx(
        1 - float(torch.stack(fidelity).mean().detach()), abs=1e-5
    )


def test_the_gradient_of_a_code_goes_straight_to_its_latent() -> None:
    objective = build(target="pixels", commitment=0.0)
    batch, raw = batch_of(2, objective), []
    objective.network.project.register_forward_hook(lambda *call: raw.append(call[2]))
    objective(batch, 0).loss.backward(retain_graph=True, inputs=list(objective.parameters()))
    weight = objective.network.project[2].weight.grad.clone()
    (before,) = raw[:1]
    unit = F.normalize(before.detach(), dim=-1)
    vectors = objective.network.codebook.vectors
    code = vectors[(unit @ vectors.T).argmax(dim=2)].requires_grad_()
    targets = objective._targets(objective.pixel_scale(batch.images), None, batch)  # type: ignore[arg-type]
    F.mse_loss(objective.decoder(code), targets).backward()
    objective.zero_grad()
    F.normalize(before, dim=-1).backward(code.grad)
    torch.testing.assert_close(objective.network.project[2].weight.grad, weight)
    assert weight.abs().max() > 0


def test_the_teacher_sees_the_same_crop_at_its_own_size_and_in_its_own_normalization() -> None:
    objective = build(target="features")
    views = build_views(objective.config, BACKBONE)
    assert views.crop_sizes == ((1, (16, 24)), (1, (32, 48)))
    draw = views.draw(100, 100, np.random.default_rng(3))
    own, given = draw.crops
    assert own.box == given.box
    assert (own.across, own.down) == (given.across, given.down)
    batch = batch_of(2, objective)
    spoiled = batch._replace(given_images=torch.zeros_like(batch.given_images))
    assert not torch.equal(objective(batch, 0).loss, objective(spoiled, 0).loss)


@pytest.mark.parametrize("target", ["features", "random"])
def test_a_teacher_is_neither_trained_nor_saved(target: str) -> None:
    objective = build(target=target)
    (teacher,) = objective.frozen()
    ours = {id(each) for each in objective.parameters()}
    assert not any(id(each) in ours for each in teacher.modules.parameters())
    assert not any(each.requires_grad for each in teacher.modules.parameters())
    assert not any("teacher" in name for name in objective.state_dict())
    before = [each.clone() for each in teacher.modules.parameters()]
    objective(batch_of(2, objective), 0).loss.backward()
    assert all(each.grad is None for each in teacher.modules.parameters())
    assert all(map(torch.equal, before, teacher.modules.parameters()))


def test_a_random_teacher_is_the_same_after_a_restart() -> None:
    first = build(target="random").frozen()[0].network.state_dict()
    torch.manual_seed(77)
    config = TokenizerConfig(codebook_size=8, code_dim=4, target="random")
    second = build_objective(config, build_backbone(BACKBONE), DataConfig(), 10)
    assert isinstance(second, Tokenizer)
    again = second.frozen()[0].network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_encoder_of_kmeans_stays_as_it_was_given() -> None:
    objective = build(target="kmeans", decoder_depth=0).train()
    given = build_backbone(BACKBONE)
    objective.load_given(given)
    assert [name for name, p in objective.named_parameters() if p.requires_grad] == [
        "decoder.predict.weight",
        "decoder.predict.bias",
    ]
    assert not objective.backbone.training
    state = objective.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in given.state_dict().items())
    images = objective.pixel_scale(batch_of(2, objective).images)
    expected = F.normalize(given.eval()(images).patches, dim=-1)
    torch.testing.assert_close(objective.network.latents(objective.backbone(images)), expected)


def test_before_k_means_the_decoder_sees_the_latents() -> None:
    objective = build(target="pixels", started=False)
    batch = batch_of(8, objective)
    output = objective(batch, 0)
    assert float(output.metrics["commitment"]) == 0
    assert output.observed.codes is None
    assert "codes_used" not in output.metrics
    objective.after_step(0)
    assert objective(batch, 1).observed.codes is not None


class Constant(nn.Module):
    """A decoder whose answer does not depend on the codes."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, vectors: Tensor) -> Tensor:
        return self.answer.expand(*vectors.shape[:2], -1)


@pytest.mark.parametrize("target", ["pixels", "random"])
def test_the_mean_target_explains_nothing_and_the_targets_everything(target: str) -> None:
    objective = build(target=target)
    batch = batch_of(8, objective)
    images = objective.pixel_scale(batch.images)
    targets = objective._targets(images, objective.backbone(images), batch)
    rows = targets if target == "pixels" else F.normalize(targets, dim=-1)
    for answer, explained in ((rows.mean(dim=(0, 1)), 0.0), (targets, 1.0)):
        objective.decoder = Constant(answer)  # type: ignore[assignment]
        found = float(objective(batch, 0).metrics["explained"])
        assert found == pytest.approx(explained, abs=1e-5)


@pytest.mark.parametrize(
    ("images", "batch", "expected"),
    [
        *((1_960, 128, 256), (1_960, 32, 256), (100, 128, 64)),
        *((1_281_167, 2048, 8192), (30_000, 512, 4096)),
    ],
)
def test_the_number_of_codes_follows_from_the_data(images: int, batch: int, expected: int) -> None:
    config = TokenizerConfig(target="pixels")
    backbone = VitConfig(patch_size=12, image_size=96, width=192, heads=3)
    if images > 2_000:
        backbone = VitConfig()
    assert config.fit_to_data(backbone, images, batch).num_codes == expected


def test_too_many_codes_for_a_step_are_refused() -> None:
    config = TokenizerConfig(target="pixels", codebook_size=512)
    with pytest.raises(ValueError, match="needs at least 1024 patches in a step"):
        config.fit_to_data(BACKBONE, 1_000, 8)
    with pytest.raises(ValueError, match="codebook_size=64 needs at least 128 patches"):
        TokenizerConfig(target="pixels").fit_to_data(BACKBONE, 1_000, 4)


def test_a_teacher_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ValidationError, match="teacher has no effect"):
        TokenizerConfig(target="pixels", teacher="RUN")


def test_an_exported_tokenizer_gives_the_same_codes(tmp_path: Path) -> None:
    objective = build(target="pixels").eval()
    state = {name: module.state_dict() for name, module in objective.exported().items()}
    info = ExportInfo.of_run(find_recipe("tokenizer_pixels_small_data"), "0" * 16)
    info = info.model_copy(update={"backbone": BACKBONE})
    write_export(tmp_path / "export", state, info, objective.described())
    unplaced = state | {"tokenizer": build(started=False, target="pixels").network.state_dict()}
    write_export(tmp_path / "early", unplaced, info, objective.described())
    with pytest.raises(UserError, match="before its codes were placed"):
        load_tokenizer(tmp_path / "early")
    images = objective.pixel_scale(batch_of(3, objective).images)
    assert torch.equal(load_tokenizer(tmp_path / "export")(images), objective.network(images))


def test_the_panel_has_a_row_for_each_image() -> None:
    for target, columns in (("pixels", 3), ("features", 4)):
        objective = build(target=target).eval()
        panel = objective.panels(batch_of(3, objective))["tokens"]
        assert panel.shape == (3, 3 * (16 + 4), columns * (24 + 4))
