"""What a person types: paths, values, YAML. Every mistake is named, and nothing is lost."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from ssl_vit.config import (
    Config,
    differences,
    field_paths,
    leaves,
    read_yaml,
    to_plain,
    to_yaml,
    validate,
)
from ssl_vit.errors import UserError
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import RECIPES, find_recipe
from ssl_vit.run.config import RunConfig

BASE = RunConfig(recipe="test")


def refusal(*words: str) -> UserError:
    with pytest.raises(UserError) as caught:
        apply_overrides(BASE, words)
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value


def read(path: str, word: str) -> Any:
    """The value at a path after the override `path=word`."""
    return dict(leaves(to_plain(apply_overrides(BASE, [f"{path}={word}"]))))[path]


@pytest.mark.parametrize(
    ("path", "word", "value"),
    [
        ("objective.mask_ratio", "0.6", 0.6),
        ("schedule.length", "900", 900.0),
        ("optimizer.base_learning_rate", "1e-3", 0.001),
        ("optimizer.base_learning_rate", "1.5e-4", 0.00015),
        ("optimizer.betas", "[0.9, 0.999]", [0.9, 0.999]),
        ("data.pixel_mean", "[0,0.5,1]", [0.0, 0.5, 1.0]),
        ("objective.normalize_targets", "false", False),
        ("objective.normalize_targets", "True", True),
        ("backbone.stem", "conv", "conv"),
        ("engine.zero_stage", "2", 2),
        ("engine.workers", "3", 3),
        ("engine.workers", "auto", "auto"),
        ("data.shards", "/data/my-shards", "/data/my-shards"),
        ("data.shards", "'2024'", "2024"),
    ],
)
def test_an_override_is_read_as_the_type_of_its_field(path: str, word: str, value: Any) -> None:
    found = read(path, word)
    assert found == value
    assert type(found) is type(value)


def test_overrides_change_what_they_name_and_the_last_one_counts() -> None:
    changed = apply_overrides(BASE, ["objective.mask_ratio=0.5", "seed=3", "seed=4"])
    assert differences(BASE, changed) == {"objective.mask_ratio": (0.75, 0.5), "seed": (0, 4)}
    assert apply_overrides(BASE, []) == BASE


def test_an_override_may_name_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDS_HERE", "/scratch/7")
    assert read("data.shards", "${oc.env:SHARDS_HERE}") == "/scratch/7"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("objective.mask_ration=0.8", "objective.mask_ratio"),
        ("objective.maskratio=0.8", "objective.mask_ratio"),
        ("mask_ratio=0.8", "objective.mask_ratio"),
        ("data.global_batchsize=64", "data.global_batch_size"),
        ("data.shards.folder=x", "data.shards"),
    ],
)
def test_an_unknown_path_is_answered_with_the_nearest_name(word: str, nearest: str) -> None:
    error = refusal(word)
    assert word.partition("=")[0] in error.problem
    assert f"did you mean {nearest}?" in error.remedy


def test_an_unknown_section_is_answered_with_the_nearest_one() -> None:
    error = refusal("optimiser.weight_decay=0")
    assert "unknown config path optimiser " in error.problem
    assert "did you mean optimizer?" in error.remedy


def test_an_unknown_path_is_answered_with_its_siblings() -> None:
    for sibling in ("device", "zero_stage", "precision", "micro_batch_size", "workers"):
        assert sibling in refusal("engine.zzz=1").remedy
    for section in ("backbone", "objective", "data", "schedule", "optimizer", "engine"):
        assert section in refusal("zzz=1").remedy


@pytest.mark.parametrize(
    ("word", "bounds"),
    [
        ("objective.mask_ratio=1.8", "0 < objective.mask_ratio < 1"),
        ("objective.mask_ratio=0.0", "0 < objective.mask_ratio < 1"),
        ("objective.mask_ratio=.nan", "0 < objective.mask_ratio < 1"),
        ("seed=-1", "0 <= seed"),
        ("optimizer.base_learning_rate=.inf", "0 < optimizer.base_learning_rate"),
        ("objective.horizontal_flip=1.5", "0 <= objective.horizontal_flip <= 1"),
        ("engine.zero_stage=7", "engine.zero_stage one of 0, 1, 2"),
        ("backbone.stem=cnn", "backbone.stem one of patch, conv"),
    ],
)
def test_a_value_out_of_range_names_field_value_and_range(word: str, bounds: str) -> None:
    error = refusal(word)
    path, _, value = word.partition("=")
    assert path in error.problem
    assert value.strip(".") in error.problem
    assert bounds in error.remedy


@pytest.mark.parametrize(
    "word",
    [
        "objective.mask_ratio=high",
        "objective.mask_ratio=true",
        "objective.mask_ratio='0.5'",
        "data.global_batch_size=64.5",
        "data.global_batch_size=64.0",
        "seed=true",
        "objective.normalize_targets=1",
        "data.shards=2024",
        "data.shards=",
        "data=5",
        "optimizer.betas=0.9",
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_named(word: str) -> None:
    assert word.partition("=")[0] in refusal(word).problem


@pytest.mark.parametrize("word", ["objective.mask_ratio", "=0.8", "--smoke", ""])
def test_a_word_that_is_no_override_is_answered_with_an_example(word: str) -> None:
    error = refusal(word)
    assert f"'{word}'" in error.problem
    assert "objective.mask_ratio=0.8" in error.remedy


@pytest.mark.parametrize("word", ["data.shards=[a", "data.shards=a: b", "data.shards=${nowhere}"])
def test_a_value_that_cannot_be_read_is_no_traceback(word: str) -> None:
    assert refusal(word)


def test_a_rule_between_fields_speaks_in_two_halves() -> None:
    error = refusal("backbone.heads=5")
    assert "backbone.heads=5 does not divide backbone.width=768" in error.problem
    assert "1, 2, 3, 4, 6, 8, 12, 16" in error.remedy
    error = refusal("data.lanes=100", "data.global_batch_size=250")
    assert "data.lanes=100" in error.problem
    assert "50, 25, 10, 5" in error.remedy


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_its_yaml(name: str, tmp_path: Path) -> None:
    words = ["seed=7", "optimizer.base_learning_rate=1e-5", "engine.workers=2"]
    config = apply_overrides(find_recipe(name), words)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert validate(RunConfig, read_yaml(file), str(file)) == config


@pytest.mark.parametrize("shards", ["2024", "1e5", "yes", "null", "", "/ä b/#1: x", "0x1f", "1:30"])
def test_odd_names_survive_their_yaml(shards: str, tmp_path: Path) -> None:
    data = BASE.data.model_copy(update={"shards": shards})
    config = BASE.model_copy(update={"data": data})
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert validate(RunConfig, read_yaml(file), str(file)) == config


def test_yaml_is_complete() -> None:
    written = dict(leaves(to_plain(BASE)))
    sections = {path.rpartition(".")[0] for path in written} - {""}
    assert set(written) == set(field_paths(RunConfig)) - sections


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: x\nobjective:\n  mask_ration: 0.8\n")
    with pytest.raises(UserError, match=r"objective\.mask_ration in .*mine\.yaml"):
        validate(RunConfig, read_yaml(file), str(file))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [1", "a: ${b.c}"])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        read_yaml(file)


def test_a_missing_file_and_a_missing_field_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config file at"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="recipe is not given"):
        validate(RunConfig, {}, "here")


def test_differences_name_both_values_and_nothing_else() -> None:
    class Inner(Config):
        depth: int = 1
        names: tuple[str, ...] = ("a",)

    class Outer(Config):
        inner: Inner = Inner()
        other: Inner = Inner()

    before = Outer()
    after = Outer(inner=Inner(names=("a", "b")), other=Inner(depth=2))
    expected = {"inner.names": (["a"], ["a", "b"]), "other.depth": (1, 2)}
    assert differences(before, after) == expected
    assert differences(before, Outer()) == {}


def test_a_config_is_never_written_to() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BASE.seed = 5  # type: ignore[misc] - this is what must not work
    assert BASE.seed == 0


def test_a_default_is_checked_like_any_value() -> None:
    class Wrong(Config):
        share: float = Field(default=2.0, le=1)

    with pytest.raises(ValidationError):
        Wrong()


def test_every_setting_has_a_sentence() -> None:
    def kinds(kind: type[Config]) -> list[type[Config]]:
        inner = [field.annotation for field in kind.model_fields.values()]
        below = [k for k in inner if isinstance(k, type) and issubclass(k, Config)]
        return [kind, *(deeper for k in below for deeper in kinds(k))]

    silent = [
        f"{kind.__name__}.{name}"
        for kind in kinds(RunConfig)
        for name, field in kind.model_fields.items()
        if kind is not RunConfig and not (field.description or "").endswith(".")
    ]
    assert not silent


def test_a_section_given_as_a_mapping_keeps_the_recipes_other_values() -> None:
    config = apply_overrides(find_recipe("mae_vitb16"), ["data={lanes: 32}"])
    assert (config.data.lanes, config.data.global_batch_size) == (32, 4096)


def test_a_member_of_a_union_is_named_by_its_path_alone() -> None:
    for word in ("engine.workers=many", "engine.workers=-3"):
        with pytest.raises(UserError) as caught:
            apply_overrides(find_recipe("mae_vitb16"), [word])
        assert word.partition("=")[0] + "=" in caught.value.problem


def test_a_folder_that_looks_like_a_number_is_answered_with_quotes() -> None:
    with pytest.raises(UserError, match="quote it"):
        apply_overrides(find_recipe("mae_vitb16"), ["data.shards=2024"])


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("engine.micro_batch_size=max", "a whole number from 1 to 16777216, auto"),
        ("engine.micro_batch_size=0", "a whole number from 1 to 16777216, auto"),
        ("engine.workers=lots", "a whole number from 0 to 1024, auto"),
        ("engine.activation_checkpointing=maybe", "true, false"),
        ("engine.precision=half", "auto, float32, bfloat16, float16"),
        ("seed=99999999999999999999999", "seed < 9223372036854775808"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_allowed(word: str, allowed: str):
    with pytest.raises(UserError) as caught:
        apply_overrides(RunConfig(recipe="test"), [word])
    assert allowed in caught.value.remedy
