"""The picture in docs/architecture.md as a table: who may import whom, and how large things grow.

Imports inside functions and under TYPE_CHECKING count like any other.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Folder to put on the path → the one package in it.
PACKAGES = {
    ".": "ssl_vit",
    "launch": "ssl_vit_launch",
    "data_prep": "ssl_vit_data_prep",
    "eval": "ssl_vit_eval",
}

CONFIGS = ("data", "models", "monitors", "objectives", "training")

# Module → what of ours it may import; the most exact row counts. The bare `ssl_vit` (its version)
# is free to all.
MAY_IMPORT: dict[str, set[str]] = {
    # The ground: knows nothing of ours.
    "ssl_vit.errors": set(),
    "ssl_vit.files": {"ssl_vit.errors"},
    "ssl_vit.schedules": set(),
    "ssl_vit.distributed": {"ssl_vit.errors"},
    "ssl_vit.foreign": {"ssl_vit.errors"},
    "ssl_vit.config": {"ssl_vit.errors", "ssl_vit.files", "ssl_vit.foreign"},
    "ssl_vit.overrides": {
        "ssl_vit.config",
        "ssl_vit.errors",
        "ssl_vit.files",
        "ssl_vit.foreign",
    },
    "ssl_vit.units": {"ssl_vit.errors"},
    "ssl_vit.progress": {"ssl_vit.units"},
    # The rooms. `models` and `data` do not know each other.
    "ssl_vit.models.*": {"ssl_vit.config", "ssl_vit.models.*"},
    "ssl_vit.data.*": {
        "ssl_vit.config",
        "ssl_vit.errors",
        "ssl_vit.files",
        "ssl_vit.foreign",
        "ssl_vit.units",
        "ssl_vit.data.*",
    },
    "ssl_vit.objectives.*": {
        "ssl_vit.config",
        "ssl_vit.schedules",
        "ssl_vit.models.*",
        "ssl_vit.data.class_names",
        "ssl_vit.data.crops",
        "ssl_vit.data.views",
        "ssl_vit.objectives.*",
    },
    # What looks at an objective from outside.
    "ssl_vit.monitors.*": {
        "ssl_vit.config",
        "ssl_vit.objectives.method",
        "ssl_vit.objectives.objective",
        "ssl_vit.monitors.*",
    },
    # The images of online probes are read before a run begins.
    "ssl_vit.monitors.labeled_images": {
        "ssl_vit.data.crops",
        "ssl_vit.data.dataset",
        "ssl_vit.data.labels",
        "ssl_vit.data.shards",
        "ssl_vit.data.values",
        "ssl_vit.monitors.probes",
    },
    # The one place where an objective meets what the run says of the data.
    "ssl_vit.objectives.build": {
        "ssl_vit.models.*",
        "ssl_vit.data.config",
        "ssl_vit.data.views",
        "ssl_vit.objectives.*",
    },
    # Of what a network costs, a run knows the sum.
    "ssl_vit.cost.*": {"ssl_vit.cost.network", "ssl_vit.training.config"},
    "ssl_vit.cost.devices": set(),
    "ssl_vit.cost.tracing": set(),
    "ssl_vit.cost.disk": {"ssl_vit.cost.counting", "ssl_vit.cost.network", "ssl_vit.run.config"},
    # It builds what is trained and feeds it as training does.
    "ssl_vit.cost.counting": {
        "ssl_vit.cost.network",
        "ssl_vit.cost.tracing",
        "ssl_vit.data.config",
        "ssl_vit.data.order",
        "ssl_vit.data.views",
        "ssl_vit.models.*",
        "ssl_vit.objectives.*",
    },
    "ssl_vit.cost.estimate": {"ssl_vit.*"},
    "ssl_vit.cost.feeding": {"ssl_vit.data.*", "ssl_vit.objectives.build", "ssl_vit.run.config"},
    "ssl_vit.cost.plan_report": {"ssl_vit.*"},
    "ssl_vit.training.*": {
        "ssl_vit.config",
        "ssl_vit.cost.devices",
        "ssl_vit.cost.memory",
        "ssl_vit.distributed",
        "ssl_vit.errors",
        "ssl_vit.files",
        "ssl_vit.foreign",
        "ssl_vit.progress",
        "ssl_vit.units",
        "ssl_vit.schedules",
        "ssl_vit.data.config",
        "ssl_vit.data.batches",
        "ssl_vit.data.order",
        "ssl_vit.exports.folder",
        "ssl_vit.cost.network",
        "ssl_vit.monitors.*",
        "ssl_vit.objectives.objective",
        "ssl_vit.objectives.ema",  # which the engine tells how parameters are sharded
        "ssl_vit.training.*",
    },
    # The plan follows from the whole config, which it needs for the annotation only.
    "ssl_vit.training.plan": {
        "ssl_vit.config",
        "ssl_vit.cost.memory",
        "ssl_vit.errors",
        "ssl_vit.schedules",
        "ssl_vit.data.config",
        "ssl_vit.data.order",
        "ssl_vit.cost.network",
        "ssl_vit.run.config",
        "ssl_vit.training.config",
        "ssl_vit.training.length",
        "ssl_vit.training.split",
    },
    "ssl_vit.exports.*": {
        "ssl_vit.config",
        "ssl_vit.errors",
        "ssl_vit.files",
        "ssl_vit.foreign",
        "ssl_vit.run.config",
        "ssl_vit.cost.counting",
        "ssl_vit.data.values",
        "ssl_vit.models.*",
        "ssl_vit.objectives.given",
        "ssl_vit.objectives.objective",
        "ssl_vit.exports.preprocess",
    },
    # Feeds an export what an evaluation would.
    "ssl_vit.exports.preprocess": {
        "ssl_vit.errors",
        "ssl_vit.files",
        "ssl_vit.data.crops",
        "ssl_vit.data.dataset",
        "ssl_vit.data.decode",
        "ssl_vit.data.render",
        "ssl_vit.data.values",
        "ssl_vit.objectives.pixels",
    },
    "ssl_vit.exports.loading": {
        "ssl_vit.cost.counting",
        "ssl_vit.errors",
        "ssl_vit.exports.*",
        "ssl_vit.files",
        "ssl_vit.foreign",
        "ssl_vit.models.*",
        "ssl_vit.objectives.classification.head",
        "ssl_vit.objectives.tokenizer.network",
    },
    "ssl_vit.exports.dalle": {
        "ssl_vit.errors",
        "ssl_vit.exports.loading",
        "ssl_vit.files",
        "ssl_vit.foreign",
        "ssl_vit.objectives.given",
        "ssl_vit.objectives.tokenizer.dalle",
    },
    # What a run is made of, and where it lives.
    "ssl_vit.run.*": {"ssl_vit.*"},
    "ssl_vit.run.config": {"ssl_vit.config", *(f"ssl_vit.{room}.config" for room in CONFIGS)},
    "ssl_vit.run.folder": {
        "ssl_vit.config",
        "ssl_vit.errors",
        "ssl_vit.files",
        "ssl_vit.foreign",
        "ssl_vit.run.config",
    },
    "ssl_vit.recipes": {
        "ssl_vit.config",
        "ssl_vit.errors",
        "ssl_vit.overrides",
        "ssl_vit.recipes.*",
        "ssl_vit.run.config",
        "ssl_vit.run.minutes",
        "ssl_vit.run.smoke",
    },
    "ssl_vit.recipes.*": {
        "ssl_vit.recipes.masked",  # small networks are the same for all masked objectives
        "ssl_vit.recipes.recipe",
        "ssl_vit.run.config",
        *(f"ssl_vit.{room}.config" for room in CONFIGS),
    },
    # What a setting is: its sentence, its default, what it allows.
    "ssl_vit.settings": {"ssl_vit.config"},
    # The wiring.
    "ssl_vit": {"ssl_vit.exports.loading"},
    "ssl_vit.__main__": {"ssl_vit.cli"},
    "ssl_vit.cli": {"ssl_vit.distributed", "ssl_vit.errors"},
    "ssl_vit.commands": {
        "ssl_vit.config",
        "ssl_vit.cost.plan_report",
        "ssl_vit.demo",
        "ssl_vit.recipes",
        "ssl_vit.run.minutes",
        "ssl_vit.run.pretrain",
        "ssl_vit.settings",
    },
    "ssl_vit.demo": {"ssl_vit.*"},
    # The outer packages know the library and never each other.
    "ssl_vit_launch*": {"ssl_vit.*", "ssl_vit_launch.*"},
    "ssl_vit_data_prep*": {"ssl_vit.*", "ssl_vit_data_prep.*"},
    "ssl_vit_eval*": {"ssl_vit.*", "ssl_vit_eval.*"},
}

# Somebody else's package → the only modules of ours that may import it.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "deepspeed": ("ssl_vit.training.zero",),
    "tensorboard": ("ssl_vit.training.metrics",),
    "torch.utils.tensorboard": ("ssl_vit.training.metrics",),
    "submitit": ("ssl_vit_launch.*",),
    "timm": ("ssl_vit.models.*",),
    # Its wheel is a CUDA build; timm needs it, and `models.torchvision_ops` cures that once.
    "torchvision": (),
    "webdataset": ("ssl_vit_data_prep.*",),
    "fsspec": ("ssl_vit.data.fetch",),
    "aiohttp": ("ssl_vit.data.fetch",),
    "simplejpeg": ("ssl_vit.data.jpeg", "ssl_vit.data.decode"),
    "imagecodecs": ("ssl_vit.data.jpeg", "ssl_vit.data.png"),
    "tifffile": ("ssl_vit.data.tiff",),
    "yaml": ("ssl_vit.foreign",),
    "typer": ("ssl_vit.cli", "*.commands", "*.options"),
}

# What answers a mistake or `--help` in a moment must not load these.
SLOW = ("torch", "torchvision", "timm", "deepspeed", "tensorboard", "submitit", "webdataset")
QUICK = (
    "ssl_vit.run.messages",
    "ssl_vit.cli",
    "ssl_vit.commands",
    "ssl_vit.config",
    "ssl_vit.data.prefetcher",
    "ssl_vit.data.mixture",
    "ssl_vit.data.order",
    "ssl_vit.data.shards",
    "ssl_vit.data.sources",
    "ssl_vit.demo",
    "ssl_vit.exports.folder",
    "ssl_vit.cost.disk",
    "ssl_vit.cost.plan_report",
    "ssl_vit.run.machine",
    "ssl_vit.run.pretrain",
    "ssl_vit.recipes",
    "ssl_vit.run.config",
    "ssl_vit.run.data",
    "ssl_vit.run.folder",
    "ssl_vit.training.checkpoint",
    "ssl_vit.training.plan",
    "ssl_vit_data_prep.check",
    "ssl_vit_data_prep.index",
    "ssl_vit_data_prep.pack",
    "ssl_vit_data_prep.reshard",
    "ssl_vit_eval.inputs",
    "ssl_vit_launch.listing",
    "ssl_vit_launch.local",
    "ssl_vit_launch.submit",
    "ssl_vit_launch.sweep",
    "ssl_vit_launch.watch",
)

LARGEST_FILE = 350
# Files and lines that one training step loads: what a newcomer reads to follow it. All methods are
# counted, of which one is read; each is two or three files.
STEP, STEP_FILES, STEP_LINES = "ssl_vit.training.trainer", 95, 11_000
LARGEST_FUNCTION = 60
LARGEST_WIRING_FUNCTION = 80
WIRING = ("ssl_vit.run.pretrain", "*.commands")
MOST_PARAMETERS = 8  # except in commands, which have one for every option
VAGUE_NAMES = ("utils", "util", "helpers", "helper", "common", "misc", "tools", "lib", "base")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def find_modules() -> dict[str, Path]:
    """Dotted name → file, of all that the wheel ships."""
    found = {}
    for folder, package in PACKAGES.items():
        for file in sorted((ROOT / folder / package).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = find_modules()


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, wherever in it.

    Of ours the name is a module's; of others it is all that stands after `from` and `import`.
    """
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole in MODULES or not is_ours(whole)
                yield node.lineno, whole if is_module else str(node.module)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES.values()


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def row_of(module: str) -> str:
    """The most exact row of the table."""
    rows = [row for row in MAY_IMPORT if fnmatchcase(module, row) or f"{module}.*" == row]
    assert rows, f"{module} has no row in MAY_IMPORT: say where it stands"
    return max(rows, key=lambda row: (row == module, len(row)))


def outward_imports(module: str, file: Path) -> list[str]:
    """What a module imports of ours and may not, with the line."""
    allowed = MAY_IMPORT[row_of(module)] | {"ssl_vit"}
    return [
        f"{module}:{line} imports {name}"
        for line, name in imports_of(file)
        if is_ours(name) and not matches(name, allowed)
    ]


def misplaced_imports(module: str, file: Path) -> list[str]:
    """What a module imports of others and may not, with the line."""
    return [
        f"{module}:{line} imports {name}"
        for line, name in imports_of(file)
        for package, places in ONLY_IN.items()
        if f"{name}.".startswith(f"{package}.") and not matches(module, places)
    ]


def functions() -> Iterator[tuple[str, Function]]:
    for module, file in MODULES.items():
        for node in ast.walk(parse(file)):
            if isinstance(node, Function):
                yield module, node


def test_imports_point_inward() -> None:
    assert not [line for module, file in MODULES.items() for line in outward_imports(module, file)]


def test_a_heavy_package_is_imported_in_its_own_place_only() -> None:
    wrong = [line for module, file in MODULES.items() for line in misplaced_imports(module, file)]
    assert not wrong


def test_an_import_in_the_wrong_place_is_noticed_wherever_it_hides(tmp_path: Path) -> None:
    spy = tmp_path / "spy.py"
    spy.write_text(
        "from typing import TYPE_CHECKING\n"
        "from ssl_vit import data\n"
        "if TYPE_CHECKING:\n"
        "    from ssl_vit.data.order import SampleOrder\n"
        "def peep():\n"
        "    import ssl_vit_eval.knn\n"
        "    from torch.utils import tensorboard\n"
        "    import deepspeed.comm as comm\n"
    )
    imported = [line.split()[-1] for line in outward_imports("ssl_vit.models.spy", spy)]
    assert imported == ["ssl_vit.data", "ssl_vit.data.order", "ssl_vit_eval.knn"]
    imported = [line.split()[-1] for line in misplaced_imports("ssl_vit.models.spy", spy)]
    assert imported == ["torch.utils.tensorboard", "deepspeed.comm"]


def test_no_row_of_the_table_is_idle() -> None:
    assert set(MAY_IMPORT) == {row_of(module) for module in MODULES}


def test_commands_checks_and_plans_load_nothing_slow() -> None:
    commands = {entry.module for entry in entry_points(group="ssl_vit.commands")}
    names = sorted(commands.union(QUICK))
    assert set(names) <= set(MODULES)
    script = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [slow for slow in {SLOW} if slow in sys.modules]\n"
        "    assert not loaded, f'importing {name} loads {loaded}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_file_is_named_for_what_is_in_it() -> None:
    assert not [module for module in MODULES if module.rpartition(".")[2] in VAGUE_NAMES]


def test_a_file_opens_with_a_sentence() -> None:
    assert not [module for module, file in MODULES.items() if not ast.get_docstring(parse(file))]


def test_a_file_is_read_in_one_sitting() -> None:
    lines = {module: len(file.read_text().splitlines()) for module, file in MODULES.items()}
    assert not {module: count for module, count in lines.items() if count > LARGEST_FILE}


def closure(modules: Iterable[str], without: Iterable[str] = ()) -> set[str]:
    """These modules and all of ours that they load, wherever they import it; not what the package
    itself imports on first use of its only function.

    Args:
        without: Modules that are left out, with what only they load.
    """
    found: set[str] = set(without)
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found or module not in MODULES:
            continue
        found.add(module)
        parts = module.split(".")
        waiting += [".".join(parts[:count]) for count in range(1, len(parts))]
        if module != "ssl_vit":
            waiting += [name for _, name in imports_of(MODULES[module])]
    return found - {*without}


METHODS = sorted(
    {file.parent.name for file in (ROOT / "ssl_vit/objectives").glob("*/objective.py")}
)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_reads_few_files(method: str) -> None:
    """The loop and one method, with all that the two import, without the others' configs, which
    stand in one union. (BEiT has the most files, because it needs the tokenizer's.)
    """
    own = [name for name in MODULES if name.startswith(f"ssl_vit.objectives.{method}.")]
    others = {f"ssl_vit.objectives.{name}.config" for name in METHODS} - {*own}
    files = [MODULES[module] for module in closure([STEP, *own], others)]
    lines = sum(len(file.read_text().splitlines()) for file in files)
    assert len(files) <= STEP_FILES, f"{len(files)} files"
    assert lines <= STEP_LINES, f"{lines:,} lines"


def test_a_function_fits_a_screen() -> None:
    long = []
    for module, function in functions():
        most = LARGEST_WIRING_FUNCTION if matches(module, WIRING) else LARGEST_FUNCTION
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > most:
            long.append(f"{module}.{function.name}: {lines} lines, not {most}")
    assert not long


def test_a_function_takes_few_parameters() -> None:
    greedy = []
    for module, function in functions():
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        if count > MOST_PARAMETERS and not module.endswith(".commands"):
            greedy.append(f"{module}.{function.name}: {count} parameters")
    assert not greedy


def test_no_package_takes_a_name_that_others_use() -> None:
    for folder, package in PACKAGES.items():
        if folder != ".":
            packages = [path.parent.name for path in (ROOT / folder).glob("*/__init__.py")]
            assert packages == [package]
            assert not (ROOT / folder / "__init__.py").exists()
