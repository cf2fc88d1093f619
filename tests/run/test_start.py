"""A run that starts from another one's network: teacher and heads too, on larger crops too."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_vit.distributed import read_processes
from ssl_vit.errors import UserError
from ssl_vit.models.position import resize_positions
from ssl_vit.models.relative_position import resize_table
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.build import build_objective
from ssl_vit.objectives.objective import Objective
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import read_config
from ssl_vit.run.config import RunConfig
from ssl_vit.run.start import check_resume_from, find_checkpoint, load_network
from ssl_vit.training.state_shards import StateReader
from tests.command_line import losses, ssl_vit, torchrun
from tests.synthetic import write_shards

RECIPE = "dinov2_vitl16"  # a moving center, registers none, positions learned
SHORT = ("schedule.length=3", "schedule.warmup=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run on two processes at ZeRO-3, whose checkpoints are in two files."""
    run = tmp_path_factory.mktemp("runs") / "first"
    words = ("engine.zero_stage=3", f"data.shards={shards}")
    done = torchrun(2, "pretrain", RECIPE, "--smoke", "--run", run, *SHORT, *words)
    assert done.returncode == 0, done.stderr
    return run


def config_of(*words: str) -> RunConfig:
    return read_config(RECIPE, words, is_smoke=True)


def fresh(config: RunConfig) -> Objective:
    torch.manual_seed(1)
    model = VisionTransformer(config.backbone)
    return build_objective(config.objective, model, config.data, 10)


def stored(run: Path) -> StateReader:
    checkpoint = find_checkpoint(run)
    assert checkpoint is not None
    return StateReader(sorted(checkpoint.glob("*.safetensors")))


def loaded(run: Path, *words: str) -> Objective:
    objective, checkpoint = fresh(config_of(*words)), find_checkpoint(run)
    assert checkpoint is not None
    load_network(objective, checkpoint, read_processes())
    return objective


def test_student_teacher_heads_and_centers_are_taken_over(trained: Path):
    objective, reader = loaded(trained), stored(trained)
    names = set()
    for name, tensor in objective.state_dict(keep_vars=True).items():
        kind = "weight" if isinstance(tensor, torch.nn.Parameter) else "buffer"
        assert torch.equal(reader.read(f"{kind}/{name}"), tensor.detach().flatten()), name
        names.add(name.partition(".")[0])
    assert names == {"student", "teacher", "mask_token", "center", "patch_center"}


def test_positions_are_resized_to_larger_crops(trained: Path):
    objective: Any = loaded(trained, "backbone.image_size=96")
    reader = stored(trained)
    width = objective.backbone.config.width
    for owner, model in (
        ("student.backbone", objective.backbone),
        ("teacher.module.backbone", objective.exported_backbone),
    ):
        rows = reader.read(f"weight/{owner}.pos_embed").view(1, -1, width)
        expected = resize_positions(rows[:, 1:], (4, 4), (6, 6))
        assert torch.equal(model.pos_embed[:, 1:], expected)
        assert torch.equal(model.pos_embed[:, :1], rows[:, :1])


@pytest.mark.parametrize("what", ["", "checkpoints/step_00000003"])
def test_the_command_goes_on_at_a_higher_resolution(
    trained: Path, shards: Path, tmp_path: Path, what: str
):
    words = ("pretrain", RECIPE, "--smoke", *SHORT, f"data.shards={shards}")
    more = (f"resume_from={trained / what}", "backbone.image_size=96")
    done = ssl_vit(*words, *more, "--run", tmp_path / "high")
    assert done.returncode == 0, done.stderr
    begun = ssl_vit(*words, "backbone.image_size=96", "--run", tmp_path / "fresh")
    assert begun.returncode == 0, begun.stderr
    assert losses(tmp_path / "high")[0][1] != losses(tmp_path / "fresh")[0][1]


def test_heads_of_another_size_are_named(trained: Path):
    with pytest.raises(
        UserError, match=r"student\.head\.prototypes\.weight has 1,024 elements"
    ) as it:
        loaded(trained, "objective.prototypes=32")
    assert "objective settings" in it.value.remedy


def test_another_objective_is_refused_and_its_export_is_not(trained: Path):
    mae = read_config("mae_vits16", ["backbone.initialization=truncated_normal"], is_smoke=True)
    same = [f"backbone.layer_scale={config_of().backbone.layer_scale}"]
    mae = apply_overrides(mae, [*same, "backbone.position=learned", f"resume_from={trained}"])
    with pytest.raises(UserError, match=r"objective\.name=dino, but this run has mae"):
        check_resume_from(mae)
    check_resume_from(
        mae.model_copy(update={"resume_from": str(trained / "exports" / "step_00000003")})
    )


def test_another_backbone_is_refused(trained: Path):
    with pytest.raises(UserError, match=r"backbone\.depth=2, but this run has 3"):
        check_resume_from(config_of("backbone.depth=3", f"resume_from={trained}"))


def test_nothing_there_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="neither a checkpoint nor an export"):
        check_resume_from(config_of(f"resume_from={tmp_path}"))


def copied(trained: Path, to: Path) -> Path:
    shutil.copytree(trained / "checkpoints" / "step_00000003", to / "checkpoints/step_00000003")
    shutil.copy(trained / "config.yaml", to)
    return to


def test_a_damaged_checkpoint_is_named(trained: Path, tmp_path: Path):
    source = copied(trained, tmp_path / "source")
    file = next((source / "checkpoints/step_00000003").glob("rank_*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="its sha256 differs"):
        loaded(source)
    file.write_bytes(content[:-8])
    with pytest.raises(UserError, match="is damaged"):
        loaded(source / "checkpoints/step_00000003")


def test_once_begun_a_run_needs_the_other_no_more(trained: Path, shards: Path, tmp_path: Path):
    source = copied(trained, tmp_path / "source")
    words = ("pretrain", RECIPE, "--smoke", *SHORT, f"data.shards={shards}")
    words += (f"resume_from={source}", "--run", tmp_path / "run")
    done = ssl_vit(*words)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "run" / "exports")  # so that there is something to do again
    again = ssl_vit(*words)
    assert again.returncode == 0, again.stderr


RELATIVE = ("backbone.position=relative", "engine.zero_stage=3", "engine.zero3_whole_below=100")


@pytest.fixture(scope="module")
def relative(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run with relative positions on two processes, each of which has half of the table."""
    run = tmp_path_factory.mktemp("runs") / "relative"
    words = (*SHORT, *RELATIVE, f"data.shards={shards}")
    done = torchrun(2, "pretrain", RECIPE, "--smoke", "--run", run, *words)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("tables", ["shared", "per_block"])
def test_relative_positions_are_resized_and_copied_into_every_block(relative: Path, tables: str):
    words = (*RELATIVE, "backbone.image_size=[64,96]", f"backbone.relative_tables={tables}")
    words += (f"resume_from={relative}", "backbone.drop_path_rule=linear")
    config = read_config(RECIPE, words, is_smoke=True)
    check_resume_from(config)
    objective: Any = loaded(relative, *words)
    name = "student.backbone.rel_pos_bias.relative_position_bias_table"
    table = stored(relative).read(f"weight/{name}").view(-1, config.backbone.heads)
    assert table.any()  # it was trained: it starts at zero
    expected = resize_table(table, (4, 4), (4, 6))
    found = [p for n, p in objective.backbone.named_parameters() if "rel_pos_bias" in n]
    assert len(found) == (1 if tables == "shared" else config.backbone.depth)
    assert all(torch.equal(each, expected) for each in found)


def test_tables_of_blocks_do_not_become_a_shared_one(relative: Path, tmp_path: Path):
    source = copied(relative, tmp_path / "source")
    text = (source / "config.yaml").read_text()
    assert "relative_tables: shared" in text
    text = text.replace("relative_tables: shared", "relative_tables: per_block")
    (source / "config.yaml").write_text(text)
    config = read_config(RECIPE, [*RELATIVE, f"resume_from={source}"], is_smoke=True)
    with pytest.raises(UserError, match=r"relative_tables=per_block, but this run has shared"):
        check_resume_from(config)
