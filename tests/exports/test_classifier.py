"""A classifier's export: round trip, timm with its head, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_vit.errors import UserError
from ssl_vit.exports.folder import ExportInfo, read_classifier_info, write_export
from ssl_vit.exports.loading import load_backbone, load_classifier
from ssl_vit.models.build import build_backbone
from ssl_vit.models.config import VitConfig
from ssl_vit.objectives.classification.head import Classifier
from ssl_vit.recipes import find_recipe

SIZES: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}
TIMM: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
POOLS = {"mean": "avg", "cls": "token", "map": "map"}


def export(folder: Path, position: Any = "sincos", pooling: Any = "mean") -> Classifier:
    config = VitConfig(**SIZES, image_size=(32, 48), position=position)
    torch.manual_seed(0)
    model = Classifier(build_backbone(config), pooling, 3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    info = ExportInfo.of_run(find_recipe("mae_small_data"), "0" * 16)
    state = {"backbone": model.backbone.state_dict(), "classifier": model.state_dict()}
    described = {"classifier": {"pooling": pooling, "classes": ("a", "b", "c")}}
    write_export(folder, state, info.model_copy(update={"backbone": config}), described)
    return model.eval()


@pytest.mark.parametrize("position", ["sincos", "learned", "relative"])
@pytest.mark.parametrize("pooling", POOLS)
@torch.no_grad()
def test_it_comes_back_and_opens_in_timm_with_its_head(
    position: str, pooling: str, tmp_path: Path
) -> None:
    from timm.models.beit import Beit
    from timm.models.vision_transformer import VisionTransformer

    model, images = export(tmp_path, position, pooling), torch.randn(2, 3, 32, 48)
    logits = model(images)[0]
    assert torch.equal(load_classifier(tmp_path)(images)[0], logits)
    assert read_classifier_info(tmp_path).classes == ("a", "b", "c")
    if position == "relative" and pooling == "map":
        return  # timm has no such network
    settings = {**TIMM, "img_size": (32, 48), "num_classes": 3, "global_pool": POOLS[pooling]}
    if position == "relative":
        theirs: Any = Beit(**settings, use_abs_pos_emb=False, use_shared_rel_pos_bias=True)
    else:
        theirs = VisionTransformer(**settings)
    theirs.load_state_dict(load_file(tmp_path / "classifier.safetensors"))
    torch.testing.assert_close(theirs.eval()(images), logits)


def test_its_backbone_is_an_export_like_any_other(tmp_path: Path) -> None:
    model = export(tmp_path)
    loaded, theirs = load_backbone(tmp_path).state_dict(), model.state_dict()
    for name, value in model.backbone.state_dict().items():
        # The norm of `mean` pooling is the head's; the backbone's own is not trained.
        expected = theirs[f"fc_{name}"] if name.startswith("norm.") else value
        assert torch.equal(loaded[name], expected)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    export(tmp_path)
    file = tmp_path / "classifier.safetensors"
    whole = load_file(file)
    for change, problem in (
        ({"head.weight": torch.zeros(4, 32)}, "head.weight"),
        ({"head.bias": torch.full((3,), torch.nan)}, "not finite"),
        ({"extra": torch.zeros(1)}, "left over"),
    ):
        save_file(whole | change, file)
        with pytest.raises(UserError, match=problem):
            load_classifier(tmp_path)


def test_a_run_without_a_classifier_is_refused(tmp_path: Path) -> None:
    export(tmp_path)
    info = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").unlink()
    with pytest.raises(UserError, match=r"has no classifier \(no classifier.json\)"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(info | {"format": "other"}))
    with pytest.raises(UserError, match="is not in the format ssl-vit-classifier-1"):
        load_classifier(tmp_path)
