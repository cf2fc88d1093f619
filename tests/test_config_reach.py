"""A knob is born with its reader: run a recipe's smoke twin and name each setting nobody read.

This file is also the program that the test starts, because DeepSpeed starts once in a process:
`python -m tests.test_config_reach RECIPE SHARDS RUN` prints what was read.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args, get_origin

import pytest

from ssl_vit.config import Config
from ssl_vit.objectives.config import BeitConfig, ClassificationConfig, DinoConfig, MaeConfig
from ssl_vit.objectives.given import GivenNetwork
from ssl_vit.recipes import RECIPES, find_recipe
from ssl_vit.run.config import RunConfig
from tests.command_line import python
from tests.given import given_words
from tests.synthetic import write_shards

ROOT = Path(__file__).parent.parent
PACKAGES = tuple(str(ROOT / folder) for folder in ("ssl_vit", "launch", "data_prep", "eval"))
# Looking at every setting, or changing it, is not reading it.
NO_READERS = tuple(
    str(ROOT / "ssl_vit" / name) for name in ("config.py", "overrides.py", "recipes")
)

# Files of configs and of what they have in common.
OF_CONFIGS = ("/config.py", "/objectives/method.py")

# One recipe for every objective and shape of config; the others have the same fields.
REPRESENTATIVES = {type(find_recipe(name).objective): name for name in reversed(RECIPES)}
# Runs that together read every setting of an objective: words besides the recipe's own.
VARIANTS: dict[type[Config], tuple[tuple[str, ...], ...]] = {
    BeitConfig: (("objective.aggregate_after=1",),),
    ClassificationConfig: (
        ("objective.class_weights=auto",),
        ("objective.label_separator=a", "objective.loss=binary", "objective.class_weights=auto"),
    ),
    MaeConfig: (("data.value_range=[0,4095]", "data.no_data=65535"),),
    DinoConfig: (
        ("objective.centering=average", "objective.ibot_weight=1", "objective.koleo_weight=0.1"),
        (
            *("objective.ibot_weight=1", "objective.ibot_prototypes=32"),
            *("data.value_range=[0,4095]", "data.no_data=65535"),
        ),
    ),
}


def settings(kind: type[Config], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted path, name of the config's class, field) of every setting that can be turned."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        members = [each for each in get_args(inner) if _is_config(each)]
        if GivenNetwork in members:
            continue  # not set by anyone: filled in by the run
        if _is_config(inner):
            yield from settings(inner, f"{prefix}{name}.")
        elif members:  # a union: of each run, the one that it has
            for member in members:
                yield from settings(member, f"{prefix}{name}.")
        elif get_origin(inner) is Literal and len(get_args(inner)) == 1:
            continue  # a tag that says which config this is; pydantic reads it
        else:
            yield f"{prefix}{name}", kind.__name__, name


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Config)


def unread(config: RunConfig, reads: set[tuple[str, str]]) -> list[str]:
    others = {each.__name__ for each in REPRESENTATIVES if each is not type(config.objective)}
    return [
        path
        for path, owner, name in settings(type(config))
        if owner not in others and (owner, name) not in reads
    ]


class Recorder:
    """Remembers which fields of configs the code of our packages reads, validators apart."""

    def __init__(self) -> None:
        self.reads: set[tuple[str, str]] = set()

    def install(self) -> None:
        plain = Config.__getattribute__

        def recording(config: Config, name: str) -> Any:
            if not name.startswith("_") and name in type(config).model_fields:
                reader = asking(sys._getframe(1))
                if reader.startswith(PACKAGES) and reader not in NO_READERS:
                    self.reads.add((type(config).__name__, name))
            return plain(config, name)

        setattr(Config, "__getattribute__", recording)  # noqa: B010 - pyright refuses the plain way


def asking(frame: FrameType | None) -> str:
    """The file whose code asks a config for something. A config's own methods answer others; its
    validators are called by pydantic, which is no reader.
    """
    # A property is reached through the recorder itself.
    while frame is not None and frame.f_code.co_filename.endswith((*OF_CONFIGS, __file__)):
        frame = frame.f_back
    return frame.f_code.co_filename if frame is not None else ""


def record_run(recipe: str, shards: str, run: str, *more: str) -> set[tuple[str, str]]:
    """Three updates of a recipe's smoke twin in this process; what was read of its config."""
    from ssl_vit.run.pretrain import prepare, start

    recorder = Recorder()
    recorder.install()
    # A data worker is a process of its own, and what it reads would be lost.
    words = [f"data.shards={shards}", "engine.workers=0", "engine.device=cpu"]
    words += [f"monitor.labeled={shards}"]
    words += ["schedule.length=3", "schedule.warmup=1", *more]
    assert start(prepare(recipe, Path(run), words, is_smoke=True)) == 0
    return recorder.reads


@pytest.mark.parametrize("recipe", REPRESENTATIVES.values())
def test_every_setting_has_a_reader(recipe: str, tmp_path: Path) -> None:
    shards = write_shards(tmp_path, per_class=12)
    config = find_recipe(recipe)
    reads: set[tuple[str, str]] = set()
    for place, more in enumerate(VARIANTS.get(type(config.objective), ((),))):
        given = given_words(recipe, shards, tmp_path)
        words = (recipe, shards, tmp_path / f"run{place}", *more, *given)
        done = python("-m", "tests.test_config_reach", *words, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        reads |= {(owner, name) for owner, name in json.loads(done.stdout.splitlines()[-1])}
    assert unread(config, reads) == []


def test_recipes_without_a_run_of_their_own_have_no_setting_of_their_own() -> None:
    for name in RECIPES:
        config = find_recipe(name)
        twin = find_recipe(REPRESENTATIVES[type(config.objective)])
        assert type(config) is type(twin)
        for section in type(config).model_fields:
            assert type(getattr(config, section)) is type(getattr(twin, section))


def test_no_two_sections_share_a_class() -> None:
    """Reads are recorded by class and field, so a class must stand at one path only."""
    paths = [(owner, name) for _, owner, name in settings(RunConfig)]
    assert len(paths) == len(set(paths))


def test_a_setting_nobody_reads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_vit.training.plan import weight_decay_at

    config = RunConfig(recipe="test")
    with monkeypatch.context() as patch:
        patch.setattr(Config, "__getattribute__", Config.__getattribute__)  # restored afterwards
        recorder = Recorder()
        recorder.install()
        type(config).model_validate(config.model_dump())  # validators look at many
        assert config.objective.mask_ratio == 0.75  # and so do tests
        plan: Any = type("Plan", (), {"total_steps": 10})
        weight_decay_at(0, config.optimizer, plan)
    expected = {("OptimizerConfig", "weight_decay"), ("OptimizerConfig", "final_weight_decay")}
    assert recorder.reads == expected
    missing = unread(config, recorder.reads)
    assert "objective.mask_ratio" in missing
    assert "optimizer.weight_decay" not in missing


if __name__ == "__main__":
    print(json.dumps(sorted(record_run(*sys.argv[1:]))))
