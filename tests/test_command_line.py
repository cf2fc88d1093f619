"""What a newcomer types wrong: two lines, exit code 2, nothing written, nothing slow imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_vit.recipes import RECIPES
from tests.command_line import ENVIRONMENT, ssl_vit
from tests.synthetic import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def refused(*words: str | Path) -> tuple[str, str]:
    """Run a command that must be refused; returns what is wrong and what to do."""
    done = ssl_vit(*words)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("fix:   ")
    return lines[0], lines[1]


def test_an_unknown_path_names_the_nearest_and_its_siblings(tmp_path: Path):
    run = tmp_path / "run"
    wrong, fix = refused("pretrain", "mae_vitb16", "--run", run, "objective.mask_ration=0.8")
    assert "objective.mask_ration" in wrong
    assert "did you mean objective.mask_ratio?" in fix
    assert "decoder_width" in fix
    assert not run.exists()


def test_a_value_out_of_range_names_field_value_and_range(tmp_path: Path):
    run = tmp_path / "run"
    wrong, fix = refused("pretrain", "mae_vitb16", "--run", run, "objective.mask_ratio=1.8")
    assert "objective.mask_ratio=1.8" in wrong
    assert "0 < objective.mask_ratio < 1" in fix


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective.mask_ratio"], "not an override"),
        (["backbone.stem=transformer"], "backbone.stem"),
        (["backbone.stem=conv", "backbone.patch_size=14"], "backbone.patch_size=14"),
        (["backbone.heads=5"], "does not divide backbone.width"),
        (["data.lanes=60"], "does not divide data.global_batch_size"),
        ([], "data.shards is not given"),
        (["data.shards=/nowhere"], "no shard folder at /nowhere"),
        (["data.shards=ftp://host/x"], "unsupported scheme, ftp:"),
        (["data.shards=[a,b]", "data.weights=[1]"], "1 numbers for 2 sets"),
        (["data.shards=[a,b]", "data.weights=[1,0]"], "must be positive"),
        (["data.shards=[a,b]", "data.weights=[1e-9,1]"], "less than a millionth"),
        (["data.source=dreams"], "data.source"),
        (["data.max_bad_fraction=2"], "data.max_bad_fraction=2"),
        (["engine.cache_bytes=large"], "engine.cache_bytes=large is not a size"),
        (["engine.prefetch=0"], "engine.prefetch"),
    ],
)
def test_wrong_settings_are_refused(words: list[str], said: str, tmp_path: Path):
    import re

    wrong, _ = refused("pretrain", "mae_vitb16", "--run", tmp_path / "run", *words)
    assert re.search(said, wrong)
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_lists_those_there_are(tmp_path: Path):
    wrong, fix = refused("pretrain", "mae_vitx", "--run", tmp_path)
    assert "mae_vitx" in wrong
    assert "mae_vitb16" in fix


def test_an_empty_shard_folder_is_refused(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    wrong, fix = refused(
        "pretrain", "mae_vits16", "--run", tmp_path / "run", f"data.shards={tmp_path / 'shards'}"
    )
    assert "is empty" in wrong
    assert "ssl-vit shards pack" in fix


def test_a_batch_that_does_not_divide_names_the_nearest(shards: Path, tmp_path: Path):
    wrong, fix = refused(
        *("pretrain", "mae_vits16", "--smoke", "--run", tmp_path / "run", f"data.shards={shards}"),
        *("data.global_batch_size=20", "engine.micro_batch_size=8"),
    )
    assert "data.global_batch_size=20" in wrong
    assert "16 and 24" in fix


def test_a_folder_of_something_else_is_never_written_to(shards: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    wrong, _ = refused(
        "pretrain", "mae_vits16", "--smoke", "--run", tmp_path, f"data.shards={shards}"
    )
    assert "is not a run folder" in wrong
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_folder_of_another_recipe_or_setting_is_refused(shards: Path, tmp_path: Path):
    from ssl_vit.recipes import read_config
    from ssl_vit.run.folder import RunFolder

    folder = RunFolder(tmp_path / "run")
    folder.write_config(read_config("mae_vits16", [f"data.shards={shards}"], is_smoke=True))
    before = folder.config.read_text()
    for words in (
        ["mae_vith14", "--smoke"],
        ["mae_vits16", "--smoke", "objective.mask_ratio=0.5"],
    ):
        wrong, fix = refused("pretrain", *words, "--run", folder.root, f"data.shards={shards}")
        assert "holds a run with" in wrong
        assert "another --run folder" in fix
    assert folder.config.read_text() == before


def test_beginning_from_a_backbone_of_another_shape_is_refused(shards: Path, tmp_path: Path):
    from ssl_vit.exports.folder import ExportInfo, write_export
    from ssl_vit.recipes import find_recipe

    info = ExportInfo.of_run(find_recipe("mae_vitl16"), "0" * 16)
    write_export(tmp_path / "export", {}, info)
    wrong, fix = refused(
        *("pretrain", "mae_vitb16", "--run", tmp_path / "run", f"data.shards={shards}"),
        *(f"resume_from={tmp_path / 'export'}", "data.lanes=16"),
    )
    assert "backbone.width=1024, but this run has 768" in wrong
    assert "set backbone.width=1024" in fix
    assert not (tmp_path / "run").exists()


def test_bare_slurm_tasks_are_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tests import command_line

    monkeypatch.setitem(command_line.ENVIRONMENT, "SLURM_STEP_NUM_TASKS", "8")
    wrong, fix = refused(
        "pretrain", "mae_vits16", "--smoke", "--run", tmp_path / "run", f"data.shards={shards}"
    )
    assert "8 processes that do not form a group" in wrong
    assert "ssl-vit launch submit" in fix


def test_image_folders_without_images_are_refused(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("no image")
    wrong, _ = refused("shards", "pack", tmp_path / "images", tmp_path / "shards")
    assert "images" in wrong
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["pretrain"],
        ["recipes"],
        ["demo"],
        ["shards"],
        ["shards", "pack"],
        ["shards", "check"],
        ["shards", "index"],
        ["shards", "reshard"],
        ["shards", "preview"],
        ["eval"],
        ["eval", "knn"],
        ["eval", "linear"],
        ["launch"],
        ["launch", "submit"],
    ],
)
def test_every_command_has_a_help_text(words: list[str]):
    done = ssl_vit(*words, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert len(done.stdout.splitlines()) > 5


def test_help_and_refusals_import_no_torch(tmp_path: Path):
    script = (
        "import sys\n"
        "from ssl_vit.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('slow:', sorted({'torch', 'timm', 'deepspeed', 'tensorboard'} & set(sys.modules)))"
    )
    for words in (
        ["--help"],
        ["pretrain", "mae_vitb16", "--run", str(tmp_path / "run"), "objective.mask_ratio=1.8"],
        ["pretrain", "mae_vitb16", "--run", str(tmp_path / "run"), "data.shards=/nowhere"],
        ["eval", "knn", str(tmp_path), "--train", "/nowhere", "--test", "/nowhere"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "slow: []"


def test_mistakes_of_typing_are_two_lines_too() -> None:
    for words, said in [
        (["shards", "pack", "--workers", "-3", "a", "b"], "--workers"),
        (["shards", "park"], "No such command 'park'"),
        (["pretrain", "mae_vits16"], "--run"),
        (["--bogus"], "--bogus"),
    ]:
        wrong, fix = refused(*words)
        assert said in wrong
        assert "--help" in fix


def test_a_run_folder_that_cannot_be_made_is_said(shards: Path) -> None:
    wrong, _ = refused(
        "pretrain", "mae_vits16", "--smoke", "--run", "/proc/x", f"data.shards={shards}"
    )
    assert "cannot write to /proc/x" in wrong


def test_the_same_images_twice_are_no_larger_set(shards: Path, tmp_path: Path) -> None:
    wrong, fix = refused(
        *("pretrain", "mae_vits16", "--smoke", "--run", tmp_path / "run"),
        f"data.shards=[{shards},{shards}/]",
    )
    assert "in common" in wrong
    assert "data.weights" in fix


def test_pictures_that_cannot_be_made_are_said(shards: Path, tmp_path: Path) -> None:
    preview = ("shards", "preview", shards, "mae_vits16", "data.lanes=4")
    assert "is a folder" in refused(*preview, "--out", tmp_path)[0]
    assert "cannot write" in refused(*preview, "--out", "/proc/x.png")[0]
    assert "no preview" in refused(*preview, "data.source=synthetic")[0]


def test_recipes_are_listed_with_method_paper_and_expected_result():
    done = ssl_vit("recipes")
    assert done.returncode == 0, done.stderr
    listed = (
        r"^mae_vitl16 {2,}MAE, ViT-L/16; He et al. 2021, arXiv 2111\.06377\n"
        r" +expected: ImageNet-1k after 800 epochs: fine-tuning 85\.4"
    )
    assert re.search(listed, done.stdout, flags=re.MULTILINE)
    assert all(re.search(rf"^{name} {{2,}}\S", done.stdout, re.MULTILINE) for name in RECIPES)


def test_a_printed_recipe_is_a_config_file(tmp_path: Path):
    done = ssl_vit("recipes", "dinov2_vitl16")
    assert done.returncode == 0, done.stderr
    assert "\n  # Temperature of the student's softmax.\n  # Allowed: 0.0001 <= " in done.stdout
    file = tmp_path / "mine.yaml"
    file.write_text(done.stdout.replace("student_temperature: 0.1\n", "student_temperature: 0\n"))
    wrong, _ = refused("pretrain", file, "--run", tmp_path / "run")
    assert "objective.student_temperature=0 is out of range" in wrong
    file.write_text(done.stdout)
    wrong, _ = refused("pretrain", file, "--run", tmp_path / "run")
    assert "data.shards is not given" in wrong
