"""Every name of DeepSpeed's that `zero.py` touches is there in the DeepSpeed that is installed.

A new DeepSpeed then fails by the name it dropped. This file is also the program that looks:
`python -m tests.training.test_zero`, one engine for every ZeRO stage.
"""

import ast
import importlib
import json
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.command_line import python

ROOT = Path(__file__).parents[2]
WALL = ROOT / "ssl_vit" / "training" / "zero.py"
PRIVATE_BY_NAME = ("ds_", "_hp_", "fp32_", "FWD_", "torch_autocast", "__compatible_ops__")


class Name(NamedTuple):
    """A name of DeepSpeed's."""

    owner: str
    """A module; or what `deepspeed.initialize` makes: engine, optimizer, parameter, frozen."""
    path: str
    """From the owner."""
    user: str
    """The function of `zero.py` that needs it."""
    stages: tuple[int, ...] = ()
    """At which ZeRO stages an instance has it."""

    def __str__(self) -> str:
        at = f" at ZeRO stage {', '.join(map(str, self.stages))}" if self.stages else ""
        return f"{self.owner}.{self.path}{at}, used by {self.user} of ssl_vit/training/zero.py"


ALL, SHARDED, SOME, LAST = (0, 1, 2, 3), (1, 2, 3), (1, 2), (3,)
IN_MODULES = (
    Name("deepspeed", "init_distributed", "start_process_group"),
    Name("deepspeed", "initialize", "ZeroModel"),
    Name("deepspeed.comm.comm", "cdb", "start_process_group"),
    Name("deepspeed.ops", "__compatible_ops__", "start_process_group"),
    Name("deepspeed.runtime.zero.parameter_offload", "FWD_MODULE_STACK", "free_memory"),
    Name("deepspeed", "zero.GatheredParameters", "gathered"),
)
IN_INSTANCES = (
    Name("backend", "all_gather_function", "start_process_group", (0,)),
    Name("engine", "module", "module", ALL),
    Name("engine", "device", "device", ALL),
    Name("engine", "backward", "backward", ALL),
    Name("engine", "step", "step", ALL),
    Name("engine", "is_gradient_accumulation_boundary", "step", (0, 1, 2)),
    Name("engine", "enable_backward_allreduce", "ZeroModel", (0,)),
    Name("engine", "get_global_grad_norm", "gradient_norm", SHARDED),
    Name("engine", "destroy", "destroy", ALL),
    Name("engine", "torch_autocast_z0_gradscaler", "without_loss_scaling", (0,)),
    Name("optimizer", "param_groups", "param_groups", ALL),
    Name("optimizer", "optimizer", "_base_optimizer", SHARDED),
    Name("optimizer", "torch_autocast_gradscaler", "without_loss_scaling", SHARDED),
    Name("optimizer", "_update_model_bit16_weights", "ZeroModel", SOME),
    Name("optimizer", "averaged_gradients", "_gradients", SOME),
    Name("optimizer", "override_loss_scale", "scale_loss", SHARDED),
    Name("optimizer", "_hp_optimizer_states_linked", "make_moments", SOME),
    Name("optimizer", "_lazy_init_hp_params_optimizer_state", "make_moments", SOME),
    Name("optimizer", "fp32_partitioned_groups_flat", "_optimized_tensors", LAST),
    Name("optimizer", "_get_fp32_opt_state_partition", "_stage_3_partition", LAST),
    Name("optimizer", "persistent_parameters", "refresh_copies", LAST),
    Name("parameter", "_hp_mapping", "kept_state", SOME),
    Name("parameter", "_hp_mapping.lp_fragment_address.start", "kept_state", SOME),
    Name("parameter", "_hp_mapping.hp_fragment.data", "kept_state", SOME),
    Name("parameter", "_hp_mapping.optim_fragment", "kept_state", SOME),
    *(
        Name(owner, path, user, LAST)
        for owner in ("parameter", "frozen")
        for path, user in (
            ("ds_tensor.data", "local_parts"),
            ("ds_tensor.ds_numel", "_share_of"),
            ("ds_numel", "local_parts"),
            ("partition", "refresh_copies"),
            ("all_gather", "refresh_copies"),
        )
    ),
)
# Whatever is reached through these in zero.py is DeepSpeed's.
_ROOTS = {"deepspeed", "parameter_offload", "self.deepspeed", "self.optimizer", "backend", "kept[]"}


def _lacks(owner: Any, path: str) -> bool:
    try:
        attrgetter(path)(owner)
    except (AttributeError, ImportError):
        return True
    return False


def look_into_modules() -> list[str]:
    """Names that the installed DeepSpeed's modules lack."""
    missing = []
    for name in IN_MODULES:
        try:
            module = importlib.import_module(name.owner)
        except ImportError:
            missing.append(str(name))
        else:
            missing += [str(name)] if _lacks(module, name.path) else []
    return missing


def look_into_instances() -> list[str]:
    """Names that engines of the installed DeepSpeed lack, one for each ZeRO stage."""
    import deepspeed
    import torch
    from torch import nn

    from ssl_vit.distributed import Processes
    from ssl_vit.training.config import EngineConfig, OptimizerConfig
    from ssl_vit.training.zero import start_process_group
    from ssl_vit.training.zero_config import deepspeed_config
    from tests.training.engine_worker import plan_for

    start_process_group("cpu", Processes())
    missing = []
    for stage in ALL:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
        config = EngineConfig(zero_stage=stage, precision="float32", micro_batch_size=8)
        engine, optimizer, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(model[0].parameters()),
            config=deepspeed_config(config, OptimizerConfig(), plan_for(2, config)),
            dist_init_required=False,
        )
        owners: dict[str, Any] = {
            "backend": deepspeed.comm.comm.cdb,
            "engine": engine,
            "optimizer": optimizer,
            "parameter": model[0].weight,
            "frozen": model[1].weight,
        }
        missing += [
            str(name)
            for name in IN_INSTANCES
            if stage in name.stages and _lacks(owners[name.owner], name.path)
        ]
        engine.destroy()
    return missing


def missing_config_keys() -> list[str]:
    """Keys of :func:`deepspeed_config` that the installed DeepSpeed does not know."""
    from deepspeed.runtime import constants
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION, DeepSpeedZeroConfig
    from deepspeed.utils.config import TIMERS, get_timers_config

    from tests.training.test_zero_config import written

    known = {value for value in vars(constants).values() if isinstance(value, str)}
    known |= (
        set() if any(get_timers_config(each).enabled for each in written().values()) else {TIMERS}
    )
    fields = DeepSpeedZeroConfig.model_fields
    known_to_zero = {*fields, *(field.alias for field in fields.values())}
    found = written().values()
    asked = {key for settings in found for key in settings} - {ZERO_OPTIMIZATION}
    asked_of_zero = {key for settings in found for key in settings[ZERO_OPTIMIZATION]}
    return sorted(asked - known) + sorted(asked_of_zero - known_to_zero)


@pytest.fixture(scope="module")
def missing() -> dict[str, list[str]]:
    done = python("-m", "tests.training.test_zero", cwd=ROOT)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("place", ["modules", "instances", "config keys"])
def test_the_installed_deepspeed_has_every_name_that_we_use(
    place: str, missing: dict[str, list[str]]
):
    assert place in missing, f"not looked at, because of {missing}"
    assert not missing[place], f"DeepSpeed {version('deepspeed')} lacks {missing[place]}"


def _chain(node: ast.expr) -> str | None:
    """`a.b[…].c` as `a.b[].c`; None for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            before = _chain(value)
            return before and f"{before}.{attribute}"
        case ast.Subscript(value=value):
            before = _chain(value)
            return before and f"{before}[]"
    return None


def touched() -> set[str]:
    """Names that zero.py takes of DeepSpeed's modules and objects, and those in its strings."""
    found = set()
    for node in ast.walk(ast.parse(WALL.read_text())):
        if isinstance(node, ast.Attribute):
            chain = _chain(node.value) or ""
            if chain in _ROOTS or node.attr.startswith(PRIVATE_BY_NAME):
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and str(node.value).startswith(PRIVATE_BY_NAME):
            found.add(str(node.value))
    return found


def test_the_list_names_all_that_is_touched_and_nothing_else():
    modules = {"comm", "ops", "zero"}
    listed = {part for name in (*IN_MODULES, *IN_INSTANCES) for part in name.path.split(".")}
    assert touched() - modules <= listed
    source = WALL.read_text()
    assert not [name for name in listed if name not in source]
    functions = {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert {name.user for name in (*IN_MODULES, *IN_INSTANCES)} <= functions


def test_private_names_stand_in_one_file():
    private = {name for name in touched() if name.startswith(PRIVATE_BY_NAME)}
    private |= {"_lazy_init_hp_params_optimizer_state", "_get_fp32_opt_state_partition"}
    others = [file for file in (ROOT / "ssl_vit").rglob("*.py") if file != WALL]
    assert not [
        (file.name, name) for file in others for name in private if name in file.read_text()
    ]


if __name__ == "__main__":
    from ssl_vit.distributed import leave, set_library_environment

    set_library_environment("cpu")
    results = {"modules": look_into_modules()}
    if not results["modules"]:
        results |= {"instances": look_into_instances(), "config keys": missing_config_keys()}
    print(json.dumps(results), flush=True)
    leave(0)
