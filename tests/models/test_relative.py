"""Relative position bias: against a loop over all pairs of tokens, and what each setting
promises.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from ssl_vit.data.config import DataConfig
from ssl_vit.models.block import Block
from ssl_vit.models.config import VitConfig
from ssl_vit.models.initialization import scale_by_depth
from ssl_vit.models.relative_position import RelativePositionBias, num_rows
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
from ssl_vit.objectives.config import MaeConfig, SimMimConfig
from ssl_vit.objectives.objective import decays
from ssl_vit.training.config import EngineConfig
from ssl_vit.training.optimizations import apply_optimizations

SMALL: dict[str, Any] = {"width": 32, "depth": 3, "heads": 2, "patch_size": 4, "image_size": 16}
RELATIVE: dict[str, Any] = {**SMALL, "position": "relative"}


def backbone(**settings: Any) -> VisionTransformer:
    """A small network whose weights are far from those it starts with, tables too."""
    model = VisionTransformer(VitConfig(**RELATIVE | settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def images(grid: tuple[int, int] = (4, 4), number: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(number, 3, grid[0] * 4, grid[1] * 4, generator=generator)


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (5, 1), (1, 1)])
def test_a_pair_of_tokens_has_the_bias_of_its_offset(grid: tuple[int, int]):
    height, width = grid
    bias = RelativePositionBias(grid, 3)
    rows = (2 * height - 1) * (2 * width - 1) + 3
    assert num_rows(grid) == rows
    with torch.no_grad():
        bias.relative_position_bias_table.copy_(torch.arange(rows * 3).view(rows, 3))
    found = bias(grid)
    places = [(row, column) for row in range(height) for column in range(width)]
    for query in range(1 + len(places)):
        for key in range(1 + len(places)):
            if query == key == 0:
                row = rows - 1
            elif query == 0:
                row = rows - 3
            elif key == 0:
                row = rows - 2
            else:
                (down, across), (key_down, key_across) = places[query - 1], places[key - 1]
                row = (down - key_down + height - 1) * (2 * width - 1)
                row += across - key_across + width - 1
            assert found[:, query, key].tolist() == [3 * row, 3 * row + 1, 3 * row + 2]


def test_base_has_732_rows_that_start_at_zero():
    assert num_rows((14, 14)) == 732
    assert not RelativePositionBias((14, 14), 12).relative_position_bias_table.any()


@pytest.mark.parametrize("new", [(4, 4), (7, 2), (3, 3), (2, 5)])
def test_a_resized_bias_has_the_gradients_of_finite_differences(new: tuple[int, int]):
    bias = RelativePositionBias((3, 3), 2).double()
    weights = torch.randn(2, 1 + new[0] * new[1], 1 + new[0] * new[1], dtype=torch.float64)

    def loss(table: Tensor) -> Tensor:
        given = {"relative_position_bias_table": table}
        return (torch.func.functional_call(bias, given, (new,)).tanh() * weights).sum()

    table = torch.randn(num_rows((3, 3)), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (table,))


def test_resizing_keeps_precision_under_autocast():
    bias = RelativePositionBias((4, 4), 2)
    nn.init.normal_(bias.relative_position_bias_table)
    with torch.autocast("cpu", torch.bfloat16):
        found = bias((3, 6))
    assert torch.equal(found, bias((3, 6)))


def attention_by_hand(block: Block, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and result of equation 1 of Vaswani et al., a head at a time, in float64; keys have no
    bias (Bao et al. 2021).
    """
    attention = block.attn
    heads, width = attention.num_heads, x.shape[-1] // attention.num_heads
    to_queries, to_keys, to_values = attention.qkv.weight.double().chunk(3)
    queries = x.double() @ to_queries.T + attention.qkv.q_bias.double()
    keys, values = x.double() @ to_keys.T, x.double() @ to_values.T + attention.qkv.v_bias.double()
    weights, mixed = [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(width)
        weights.append(softmax(scores + bias[head].double(), dim=-1))
        mixed.append(weights[-1] @ values[..., part])
    result = torch.cat(mixed, dim=-1) @ attention.proj.weight.double().T
    return torch.stack(weights, dim=1), result + attention.proj.bias.double()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_attention_adds_the_bias_to_its_scores(dtype: torch.dtype, bound: float):
    model = backbone()
    bias, tokens = model.attention_bias((4, 4)), torch.randn(2, 17, 32)
    assert bias is not None
    block: Any = model.blocks[0]
    weights, expected = attention_by_hand(block, tokens, bias)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = block.attn(tokens, bias)
        first = block.attn.of_first(tokens, bias)
    assert found.dtype == dtype
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error < bound
    torch.testing.assert_close(first.double(), weights[:, :, 0], atol=bound, rtol=0)
    # Without the bias it is something else: the bounds are tight enough to tell.
    assert (block.attn(tokens).double() - expected).abs().max() / expected.abs().max() > 2 * bound


def test_attention_of_the_class_token_has_the_last_blocks_bias():
    model = backbone(depth=1, relative_tables="per_block").eval()
    batch, bias = images((3, 5)), model.attention_bias((3, 5))
    assert bias is not None
    block: Any = model.blocks[0]
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), model.embed(batch)], dim=1)
    weights, _ = attention_by_hand(block, block.norm1(tokens), bias)
    found = model.class_attention(batch).double()
    torch.testing.assert_close(found, weights[:, :, 0, 1:], atol=1e-5, rtol=0)


def test_no_absolute_position_is_left():
    model = backbone().eval()
    assert not any("pos_embed" in name for name in model.state_dict())
    with torch.no_grad():
        model.rel_pos_bias.relative_position_bias_table.zero_()  # type: ignore[union-attr, operator]
    batch = images()
    mirrored = batch.unflatten(3, (4, 4)).flip(3).flatten(3)  # patches, not pixels
    there, back = model(mirrored).patches, model(batch).patches
    torch.testing.assert_close(
        there.unflatten(1, (4, 4)), back.unflatten(1, (4, 4)).flip(2), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("grid", [None, (1, 5), (4, 4)])
def test_some_of_the_patches_are_refused(grid: tuple[int, int] | None):
    model = backbone()
    tokens = model.embed(images())[:, :7]
    with pytest.raises(
        ValueError, match=r"not of 7 tokens .* encode every patch, and give its grid"
    ):
        model.encode(tokens, grid)


@pytest.mark.parametrize(
    "settings", [{}, {"relative_tables": "per_block"}, {"position": "learned", "registers": 2}]
)
@pytest.mark.parametrize("block", [0, 1, 3])
def test_inner_tokens_are_those_of_a_network_that_ends_there(settings: dict[str, Any], block: int):
    model = backbone(**settings).eval()
    tokens = model.embed(images((3, 5)))
    features, (inner,) = model.encode_with_inner(tokens, (block,), (3, 5))
    torch.testing.assert_close(features, model.encode(tokens, (3, 5)), atol=0, rtol=0)
    seen: list[Tensor] = []
    blocks = list(model.blocks)
    if block < len(blocks):  # what the next block is given
        blocks[block].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    else:  # or the final norm
        model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.encode(tokens, (3, 5))
    assert torch.equal(inner, seen[0])
    assert inner.shape == (2, 1 + model.config.registers + 15, 32)


def test_a_block_behind_the_backbone_runs_with_its_bias_and_trains_its_table():
    model = backbone(layer_scale=0.1)
    features, (inner,) = model.encode_with_inner(model.embed(images((3, 5))), (2,), (3, 5))
    # As BEiT v2's head: the last class token and the patches of an inner block.
    tokens = torch.cat([features.cls.unsqueeze(1), inner[:, 1:]], dim=1)
    late = Block(32, heads=2, key_bias=False)
    late(tokens, model.attention_bias((3, 5))).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in late.parameters())
    assert model.get_parameter("rel_pos_bias.relative_position_bias_table").grad is not None


def test_without_relative_positions_there_is_no_bias():
    model = VisionTransformer(VitConfig(**SMALL))
    assert model.attention_bias((4, 4)) is None
    assert {"relative", "q_bias"}.isdisjoint(".".join(model.state_dict()).split("."))


def test_a_shared_bias_is_computed_once_for_all_blocks():
    model, calls = backbone(), []
    table: Any = model.rel_pos_bias
    table.register_forward_hook(lambda *_: calls.append(1))
    model(images())
    assert len(calls) == 1


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("tables", ["shared", "per_block"])
def test_checkpointing_and_compilation_keep_the_gradients_of_tables(tables: str, compile: bool):
    if compile and tables == "per_block":
        pytest.skip("the blocks are the same functions, and compiling them takes long")
    found = []
    for engine in (
        EngineConfig(),
        EngineConfig(activation_checkpointing=True, compile=compile),
    ):
        # Blocks are compiled one by one, which takes long.
        settings = {**RELATIVE, "relative_tables": tables, "depth": 1 if compile else 2}
        torch.manual_seed(0)
        model = VisionTransformer(VitConfig(**settings, drop_path=0.5))
        objective = build_objective(SimMimConfig(mask_unit=4), model, DataConfig(), 1)
        in_step = apply_optimizations(objective, engine, "cpu")
        torch.manual_seed(1)
        with in_step:
            features = model(images(number=4))
            (features.patches.square().sum() + features.cls.sum()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append([features.patches, *gradients.values()])
        of_tables = [g for name, g in gradients.items() if name.startswith("rel_pos_bias")]
        assert len(of_tables) == (1 if tables == "shared" else 2)
        assert all(g is not None and g.any() for g in of_tables)
    for plain, light in zip(*found, strict=True):
        torch.testing.assert_close(light, plain, atol=1e-4 if compile else 0, rtol=1e-4)


def test_tables_do_not_decay_and_shared_ones_are_the_first_layer():
    shared, own = backbone(), backbone(relative_tables="per_block")
    for model in (shared, own):
        for name, parameter in model.named_parameters():
            if "rel_pos_bias" in name or name.endswith("_bias"):
                assert not decays(f"student.backbone.{name}", parameter)
    assert shared.layer_of("rel_pos_bias.relative_position_bias_table") == 0
    assert [own.layer_of(f"rel_pos_bias.{n}.relative_position_bias_table") for n in range(3)] == [
        1,
        2,
        3,
    ]
    assert shared.layer_of("blocks.2.attn.qkv.q_bias") == 3


def test_linear_drop_path_grows_from_zero_to_its_last_block():
    config = VitConfig(**SMALL | {"depth": 5, "drop_path": 0.2, "drop_path_rule": "linear"})
    rates = [block.drop_path for block in VisionTransformer(config).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert rates == pytest.approx(torch.linspace(0, 0.2, 5).tolist())
    single = config.model_copy(update={"depth": 1})
    assert single.drop_path_rates == (0.0,)
    constant = config.model_copy(update={"drop_path_rule": "constant"})
    assert constant.drop_path_rates == (0.2,) * 5


@pytest.mark.parametrize("feed_forward", ["mlp", "swiglu"])
def test_the_last_layers_of_branches_start_smaller_with_depth(feed_forward: str):
    torch.manual_seed(0)
    settings = {"width": 128, "initialization": "depth_scaled", "feed_forward": feed_forward}
    model = VisionTransformer(VitConfig(**RELATIVE | settings))
    for layer, block in enumerate(model.blocks, 1):
        for name, weight in block.named_parameters():
            if weight.ndim == 2:
                is_last = name in ("attn.proj.weight", "mlp.fc2.weight")
                expected = 0.02 / math.sqrt(2 * layer) if is_last else 0.02
                assert weight.std().item() == pytest.approx(expected, rel=0.05), name
            elif name.endswith("bias"):
                assert not weight.any(), name


def test_a_head_goes_on_with_the_numbers_of_layers():
    torch.manual_seed(0)
    blocks = [Block(128, heads=2), Block(128, heads=2)]
    for block in blocks:
        nn.init.normal_(block.attn.proj.weight, std=0.02)
    scale_by_depth(blocks, first_layer=10)
    for layer, block in zip((10, 11), blocks, strict=True):
        found = block.attn.proj.weight.std().item()
        assert found == pytest.approx(0.02 / math.sqrt(2 * layer), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"registers": 4}, r"registers=4 .*; set backbone\.registers=0, or choose"),
        (
            {"position": "learned", "relative_tables": "per_block"},
            r"relative_tables=per_block has no effect .*; leave it out",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        VitConfig(**RELATIVE | settings)


def test_an_objective_that_leaves_patches_out_is_told_which_positions_it_needs():
    relative = VitConfig(**RELATIVE)
    assert (relative.hides, VitConfig(**SMALL).hides) == ("fill", "drop")
    SimMimConfig(mask_unit=4).check(relative)
    with pytest.raises(ValueError, match="leave out hidden patches") as caught:
        MaeConfig().check(relative)
    remedy = "position=relative cannot; choose backbone.position=learned or sincos"
    assert remedy in str(caught.value)
