"""The backbone with relative positions against timm's Beit and transformers' BeitModel, with the
same weights.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ssl_vit
from ssl_vit.data.config import IMAGENET_MEAN, IMAGENET_STD
from ssl_vit.exports.folder import ExportInfo, write_export
from ssl_vit.models.config import VitConfig
from ssl_vit.models.relative_position import resize_table
from ssl_vit.models.timm_names import to_timm
from ssl_vit.models.timm_weights import load_timm_weights
from ssl_vit.models.torchvision_ops import define_missing_ops
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.start import load_exported
from tests.models.test_vit import scramble

define_missing_ops()
import timm  # noqa: E402 - only importable after the line above
from timm.layers import resize_rel_pos_bias_table  # noqa: E402

SMALL: dict[str, Any] = {
    "width": 48,
    "depth": 2,
    "heads": 3,
    "patch_size": 8,
    "image_size": 32,
    "position": "relative",
    "layer_scale": 0.1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "shared": {},
    "per_block": {"relative_tables": "per_block"},
    "no_layer_scale": {"layer_scale": 0.0},
    "swiglu": {"feed_forward": "swiglu"},
    "rectangle": {"image_size": (24, 48)},
}
GRIDS = [(4, 4), (7, 7), (3, 3), (3, 6), (4, 5)]


def network(**settings: Any) -> VisionTransformer:
    model = VisionTransformer(VitConfig(**SMALL | settings)).eval()
    scramble(model)
    return model


def beit(config: VitConfig, **settings: Any) -> Any:
    """timm's Beit of the same architecture."""
    options: dict[str, Any] = {
        "img_size": config.height_width,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "init_values": config.layer_scale,
        "use_rel_pos_bias": config.relative_tables == "per_block",
        "use_shared_rel_pos_bias": config.relative_tables == "shared",
        "num_classes": 0,
        "global_pool": "token",
    }
    if config.feed_forward == "swiglu":  # their ratio is that of the hidden width itself
        hidden = VisionTransformer(config).state_dict()["blocks.0.mlp.fc2.weight"].shape[1]
        options |= {"swiglu_mlp": True, "mlp_ratio": (hidden + 0.5) / config.width}
    return timm.create_model("beit_base_patch16_224", **options | settings).eval()


def images(config: VitConfig, grid: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    size = config.patch_size
    return torch.randn(2, 3, grid[0] * size, grid[1] * size, generator=generator)


@torch.no_grad()
def assert_same(ours: VisionTransformer, theirs: Any, grid: tuple[int, int]) -> None:
    batch = images(ours.config, grid)
    if grid != theirs.patch_embed.grid_size:
        theirs.set_input_size(img_size=tuple(batch.shape[-2:]))
    features, tokens = ours(batch), theirs.forward_features(batch)
    torch.testing.assert_close(features.cls, tokens[:, 0], atol=2e-5, rtol=0)
    torch.testing.assert_close(features.patches, tokens[:, 1:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_timm_loads_our_weights_strictly_and_computes_the_same(name: str):
    ours = network(**VARIANTS[name])
    theirs = beit(ours.config)
    theirs.load_state_dict(to_timm(ours.state_dict(), ours.config), strict=True)
    assert_same(ours, theirs, ours.config.grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["shared", "per_block", "rectangle"])
def test_another_grid_is_resized_as_timm_resizes_it(name: str, grid: tuple[int, int]):
    ours = network(**VARIANTS[name])
    theirs = beit(ours.config)
    theirs.load_state_dict(to_timm(ours.state_dict(), ours.config), strict=True)
    if name == "shared":
        # timm 1.0 asks every block for a window, which only their own tables have.
        for block in theirs.blocks:
            block.attn.set_window_size = lambda _: None
    assert_same(ours, theirs, grid)


@pytest.mark.parametrize("old", [(4, 4), (14, 14), (3, 6), (1, 5)])
@pytest.mark.parametrize("new", [(4, 4), (24, 24), (2, 3), (14, 7), (1, 1)])
def test_a_resized_table_has_timms_numbers(old: tuple[int, int], new: tuple[int, int]):
    def rows(grid: tuple[int, int]) -> int:
        return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3

    table = torch.randn(rows(old), 2, generator=torch.Generator().manual_seed(0))
    expected = resize_rel_pos_bias_table(
        table, new_window_size=new, new_bias_shape=(rows(new), 2), old_window_size=old
    )
    torch.testing.assert_close(resize_table(table, old, new), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_timms_weights_load_into_ours_and_compute_the_same(name: str):
    ours = network(**VARIANTS[name])
    theirs = beit(ours.config)
    scramble(theirs)
    load_timm_weights(ours, theirs.state_dict(), ours.config.grid)
    assert_same(ours, theirs, ours.config.grid)


def test_timms_weights_of_another_size_load_resized():
    ours, theirs = network(relative_tables="per_block"), beit(VitConfig(**SMALL), img_size=56)
    theirs = beit(ours.config, img_size=56)
    scramble(theirs)
    load_timm_weights(ours, theirs.state_dict())
    assert_same(ours, theirs, (4, 4))


def test_timms_beit_with_a_classifier_loads_with_the_norm_after_its_mean_and_index_buffers():
    config = VitConfig(**SMALL | {"relative_tables": "per_block"})
    theirs = beit(config, num_classes=10, global_pool="avg")
    scramble(theirs)
    state = theirs.state_dict()
    assert "fc_norm.weight" in state
    assert "norm.weight" not in state
    # Older versions of timm kept these.
    state |= {f"blocks.{n}.attn.relative_position_index": torch.zeros(17, 17) for n in range(2)}
    ours = VisionTransformer(config).eval()

    load_timm_weights(ours, state)

    batch = images(config, (4, 4))
    with torch.no_grad():
        # They normalize nothing before the mean.
        _, (inner,) = ours.encode_with_inner(ours.embed(batch), (2,), (4, 4))
        torch.testing.assert_close(inner, theirs.forward_features(batch), atol=1e-4, rtol=1e-5)
        pooled = theirs.forward_head(theirs.forward_features(batch), pre_logits=True)
        torch.testing.assert_close(ours.norm(inner[:, 1:].mean(dim=1)), pooled)


def test_the_published_architecture_of_timm_loads():
    """197 tensors of beit_base_patch16_224, in the names it is published with."""
    with torch.device("meta"):
        theirs = timm.create_model("beit_base_patch16_224")
        ours = VisionTransformer(
            VitConfig(position="relative", relative_tables="per_block", layer_scale=0.1)
        )
    state = {name: torch.empty_like(value) for name, value in theirs.state_dict().items()}
    assert len(state) == 197 + 2  # and the classifier's
    load_timm_weights(ours, state)
    renamed = to_timm(ours.state_dict(), ours.config)
    shapes = {name: value.shape for name, value in renamed.items()}
    expected = {name.removeprefix("fc_"): value.shape for name, value in state.items()}
    assert shapes == {name: shape for name, shape in expected.items() if "head" not in name}


def test_every_name_that_does_not_fit_is_said():
    ours, state = (
        network(),
        beit(VitConfig(**SMALL | {"relative_tables": "per_block"})).state_dict(),
    )
    table = "relative_position_bias_table"
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_timm_weights(ours, state)
    text = str(caught.value)
    assert f"1 tensors missing or of another shape (rel_pos_bias.{table})" in text
    assert f"2 left over (rel_pos_bias.0.{table}, rel_pos_bias.1.{table})" in text


def test_a_shared_table_is_copied_into_every_block():
    shared, own = network(), network(relative_tables="per_block")
    load_timm_weights(own, shared.state_dict())
    batch = images(shared.config, (3, 5))
    with torch.no_grad():
        torch.testing.assert_close(own(batch), shared(batch), atol=0, rtol=0)
    tables: Any = own.rel_pos_bias
    pointers = {table.relative_position_bias_table.data_ptr() for table in tables}
    assert len(pointers) == 2  # and they go their own ways from there


def export(folder: Path, model: VisionTransformer) -> Path:
    info = ExportInfo(
        backbone=model.config,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        recipe="test",
        step=7,
        data_fingerprint="0" * 16,
        ssl_vit_version=ssl_vit.__version__,
    )
    write_export(folder, {"backbone": model.state_dict()}, info)
    return folder / "backbone.safetensors"


@pytest.mark.parametrize("name", VARIANTS)
def test_an_export_comes_back_and_opens_in_timm(name: str, tmp_path: Path):
    ours = network(**VARIANTS[name])
    file = export(tmp_path, ours)
    batch = images(ours.config, ours.config.grid)
    loaded: Any = ssl_vit.load_backbone(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), ours(batch), atol=0, rtol=0)
    assert_same(ours, beit(ours.config, checkpoint_path=str(file)), ours.config.grid)


def test_an_export_without_relative_positions_has_our_own_names(tmp_path: Path):
    model = network(position="learned", feed_forward="swiglu")
    found = load_file(export(tmp_path, model))
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.items())


def test_a_run_may_start_from_an_export_of_another_grid_with_a_table_in_every_block(tmp_path: Path):
    ours = network(image_size=(24, 40))
    export(tmp_path, ours)
    larger = network(image_size=(40, 24), relative_tables="per_block")
    load_exported(larger, str(tmp_path))
    table = ours.get_parameter("rel_pos_bias.relative_position_bias_table")
    for block in range(2):
        found = larger.get_parameter(f"rel_pos_bias.{block}.relative_position_bias_table")
        torch.testing.assert_close(found, resize_table(table, (3, 5), (5, 3)))


# Ours → the attribute of transformers' model.
NAMES = (
    (r"cls_token", "beit.embeddings.cls_token"),
    (r"patch_embed\.proj\.(.*)", r"beit.embeddings.patch_embeddings.projection.\1"),
    (r"rel_pos_bias\.(relative_.*)", r"beit.shared_position_bias.\1"),
    (r"rel_pos_bias\.(\d+)\.(.*)", r"beit.layers.\1.relative_position_bias.\2"),
    (r"blocks\.(\d+)\.norm1\.(.*)", r"beit.layers.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(.*)", r"beit.layers.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.mlp\.(.*)", r"beit.layers.\1.mlp.\2"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"beit.layers.\1.lambda_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"beit.layers.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.q_bias", r"beit.layers.\1.attention.q_proj.bias"),
    (r"blocks\.(\d+)\.attn\.qkv\.v_bias", r"beit.layers.\1.attention.v_proj.bias"),
    (r"norm\.(.*)", r"layernorm.\1"),
)


def in_transformers(ours: VisionTransformer) -> dict[str, Tensor]:
    """Our weights under the names of `BeitForMaskedImageModeling` in memory, without its head."""
    found = {}
    for name, value in ours.state_dict().items():
        if matched := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.weight", name):
            place = f"beit.layers.{matched[1]}.attention"
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[f"{place}.{letter}_proj.weight"] = part
            continue
        new = [re.sub(old, to, name) for old, to in NAMES if re.fullmatch(old, name)]
        assert len(new) == 1, name
        found[new[0]] = value
    return found


@pytest.mark.parametrize("tables", ["shared", "per_block"])
def test_transformers_computes_the_same_and_with_its_mask_token_too(tables: str):
    transformers = pytest.importorskip("transformers")
    ours = network(relative_tables=tables)
    config = transformers.BeitConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=4 * 48,
        image_size=32,
        patch_size=8,
        vocab_size=16,
        use_mean_pooling=True,
        use_mask_token=True,
        use_absolute_position_embeddings=False,
        use_shared_relative_position_bias=tables == "shared",
        use_relative_position_bias=tables == "per_block",
        layer_scale_init_value=0.1,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
    )
    theirs = transformers.BeitForMaskedImageModeling(config).eval()
    done = theirs.load_state_dict(in_transformers(ours), strict=False)
    assert not done.unexpected_keys
    assert set(done.missing_keys) == {
        "beit.embeddings.mask_token",
        "lm_head.weight",
        "lm_head.bias",
    }
    scramble(theirs.lm_head)
    mask_token = torch.randn(1, 1, 48)
    with torch.no_grad():
        theirs.beit.embeddings.mask_token.copy_(mask_token)
        batch, hidden = images(ours.config, (4, 4)), torch.rand(2, 16) < 0.5
        for chosen in (None, hidden):
            inner = theirs.beit(batch, bool_masked_pos=chosen).last_hidden_state
            features = ours(batch, chosen, None if chosen is None else mask_token)
            logits = theirs(batch, bool_masked_pos=chosen).logits
            found = torch.cat([features.cls.unsqueeze(1), features.patches], dim=1)
            torch.testing.assert_close(found, theirs.layernorm(inner), atol=2e-5, rtol=0)
            torch.testing.assert_close(theirs.lm_head(features.patches), logits, atol=1e-4, rtol=0)
