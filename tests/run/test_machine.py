"""What a run finds on its machine, and the micro-batch that follows from it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import ssl_vit.run.machine
from ssl_vit.config import to_plain
from ssl_vit.distributed import Processes
from ssl_vit.errors import UserError
from ssl_vit.run.machine import find_machine, require_compiler
from ssl_vit.run.pretrain import Prepared, prepare
from ssl_vit.training.plan import with_micro_batch

MIB = 2**20


def prepared(run: Path, *words: str) -> Prepared:
    settings = ["data.source=synthetic", "engine.device=cpu", "engine.micro_batch_size=auto"]
    return prepare("mae_vits16", run, [*settings, "data.global_batch_size=96", *words], True)


@pytest.fixture
def with_memory(monkeypatch: pytest.MonkeyPatch):
    def give(num_bytes: int) -> None:
        monkeypatch.setattr(ssl_vit.run.machine, "_host_memory", lambda: num_bytes)

    return give


def test_processes_of_a_machine_share_its_memory_and_cores(with_memory):
    with_memory(1000)
    machine = find_machine("cpu", Processes(0, 8, 0, 4))
    assert (machine.memory_bytes, machine.device, machine.world_size) == (250, "cpu", 8)


@pytest.mark.parametrize(
    ("name", "value"), [("ATEN_CPU_CAPABILITY", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")]
)
def test_bfloat16_is_for_processors_that_compute_in_it_and_may(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
):
    for limit in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(limit, raising=False)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    fast = "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
    assert find_machine("cpu", Processes(0, 1, 0, 1)).fast_precision == fast
    monkeypatch.setenv(name, value)
    assert find_machine("cpu", Processes(0, 1, 0, 1)).fast_precision == "float32"


def test_the_micro_batch_is_the_largest_divisor_that_fits(with_memory, tmp_path: Path):
    with_memory(100_000 * MIB)
    assert prepared(tmp_path / "run").plan.micro_batch_size == 96
    sizes = []
    for room in (64, 32, 16, 8, 4):
        with_memory(room * MIB)
        sizes.append(prepared(tmp_path / "run").plan.micro_batch_size)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2
    assert all(96 % size == 0 for size in sizes)


def test_it_is_found_once_for_a_run(with_memory, tmp_path: Path):
    with_memory(100_000 * MIB)
    first = prepared(tmp_path / "run")
    plan = to_plain(first.plan) | {"micro_batch_size": 24}
    first.folder.write_config(first.config)
    first.folder.plan.write_text(json.dumps(plan))
    again = prepared(tmp_path / "run")
    assert (again.plan.micro_batch_size, again.plan.accumulation) == (24, 4)
    # Other settings of the engine need other memory, so it is found again; also where a launcher
    # has written them into the folder already.
    other = prepared(tmp_path / "run", "engine.zero_stage=2")
    assert other.plan.micro_batch_size == 96
    other.folder.write_config(other.config)
    assert prepared(tmp_path / "run", "engine.zero_stage=2").plan.micro_batch_size == 96
    first.folder.plan.write_text("{")
    assert prepared(tmp_path / "run").plan.micro_batch_size == 96


def test_where_nothing_fits_it_is_said(with_memory, tmp_path: Path):
    with_memory(MIB)
    with pytest.raises(UserError, match="not even one image at a time fits"):
        prepared(tmp_path / "run")


def test_where_memory_is_not_known_the_recipes_usual_is_taken(with_memory, tmp_path: Path):
    with_memory(0)
    assert prepared(tmp_path / "run").plan.micro_batch_size == 48


def test_a_gpu_is_taken_as_torch_describes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import torch

    monkeypatch.setattr(ssl_vit.run.machine, "_GPU_NODES", (str(tmp_path),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for major, fast in ((7, "float16"), (9, "bfloat16")):
        facts = SimpleNamespace(total_memory=5000, major=major)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, facts=facts: facts)
        machine = find_machine("auto", Processes(0, 2, 0, 2))
        assert (machine.device, machine.memory_bytes) == ("cuda", 5000)
        assert machine.fast_precision == fast
    with pytest.raises(UserError, match="4 processes on a machine with 2 GPUs"):
        find_machine("auto", Processes(0, 4, 0, 4))
    assert find_machine("cpu", Processes(0, 4, 0, 4)).device == "cpu"


def test_a_batch_jobs_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    unlimited = ssl_vit.run.machine._host_memory()
    assert unlimited > 0
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(ssl_vit.run.machine, "_limit_files", lambda: [limit])
    limit.write_text("max\n")
    assert ssl_vit.run.machine._host_memory() > 12345
    limit.write_text("12345\n")
    assert ssl_vit.run.machine._host_memory() == 12345


def test_ranks_on_unequal_machines_take_the_smallest_micro_batch(with_memory, tmp_path: Path):
    with_memory(100_000 * MIB)
    large = prepared(tmp_path / "run")
    small = with_micro_batch(large.plan, 24, large.config)
    assert (small.micro_batch_size, small.accumulation) == (24, 4)
    assert small.prefetch >= large.plan.prefetch


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    require_compiler()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError) as caught:
        prepared(tmp_path / "run", "engine.compile=true")
    assert "C++ compiler" in caught.value.problem
    assert "g++" in caught.value.remedy
    compiler = tmp_path / "my-compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", "my-compiler")
    require_compiler()


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ssl_vit.run.machine, "_GPU_NODES", ())
    with pytest.raises(UserError, match="torch finds no GPU"):
        find_machine("cuda", Processes())
