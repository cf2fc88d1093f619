"""The engine at ZeRO 0 to 3 on one and two processes, student and EMA teacher, in one go and in
legs with other stages and numbers of processes between them, against a plain torch loop.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command_line import ENVIRONMENT, run_group
from tests.training import engine_worker as worker

ROOT = Path(__file__).parents[2]
STAGES = (0, 1, 2, 3)
Result = dict[str, list[Any]]


def plain_loop() -> Result:
    """The same training in forty lines: whole batches, schedules by formula, torch's AdamW."""
    model = worker.build()
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = name.endswith("weight") and parameter.ndim > 1
        (matrices if is_matrix else others).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": others}], betas=worker.OPTIMIZER.betas, lr=0.0
    )
    losses, norms, by_group = [], [], []
    for step in range(worker.STEPS):
        if step < 2:
            rate = 3e-3 * (step + 1) / 2
        else:
            rate = 1e-4 + (3e-3 - 1e-4) / 2 * (1 + math.cos(math.pi * (step - 2) / 4))
        decay = 0.2 + (0.05 - 0.2) / 2 * (1 + math.cos(math.pi * step / 6))
        for group, scale in zip(optimizer.param_groups, (1.0, 0.0), strict=True):
            group["lr"], group["weight_decay"] = rate, decay * scale
        loss = model(worker.whole_batch(step), step).loss
        optimizer.zero_grad()
        loss.backward()
        before = [[p.detach().clone() for p in group] for group in (matrices, others)]
        gradients = [norm_of(p.grad for p in group) for group in (matrices, others)]
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
        optimizer.step()
        moved = [
            norm_of(p - old for p, old in zip(group, olds, strict=True))
            for group, olds in zip((matrices, others), before, strict=True)
        ]
        weights = [norm_of(group) for group in (matrices, others)]
        rows = zip(gradients, weights, moved, strict=True)
        by_group.append(dict(zip(("decayed", "plain"), rows, strict=True)))
        with torch.no_grad():
            student, teacher = model.backbone.parameters(), model.teacher.module.parameters()
            for theirs, ours in zip(student, teacher, strict=True):
                ours.copy_(0.9 * ours + 0.1 * theirs)
        losses.append(loss.item())
    return {
        "losses": losses,
        "grad_norms": norms,
        "norms": by_group,
        "weights": worker.norms_of(model),
    }


def norm_of(tensors: Iterable[Any]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def run_legs(out: Path, world_size: int, *legs: str) -> list[Result]:
    words = ("-m", "tests.training.engine_worker", out, *legs)
    ranks = run_group([words] * world_size, cwd=ROOT)
    said = [rank.stdout + rank.stderr for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(said)
    assert not any(words.strip() for words in said), f"library noise: {said}"
    results = json.loads(out.read_text())
    # Such as a rehearsal's engine, from scratch and of several updates, must leave room for the
    # run's own.
    fresh = [leg.split(":")[1:4] == ["0", str(worker.STEPS), "-"] for leg in legs]
    assert not any(
        found["left"] for found, is_fresh in zip(results, fresh, strict=True) if is_fresh
    )
    return results


def assert_same(found: Result, expected: Result, first: int = 0) -> None:
    last = first + len(found["losses"])
    for name, rtol, atol in (("losses", 0, 1e-5), ("grad_norms", 1e-4, 0)):
        torch.testing.assert_close(found[name], expected[name][first:last], rtol=rtol, atol=atol)
    for ours, theirs in zip(found["norms"], expected["norms"][first:last], strict=True):
        assert list(ours) == list(theirs)
        for name, norms in theirs.items():
            torch.testing.assert_close(tuple(ours[name]), norms, rtol=1e-3, atol=1e-7)
    if last == worker.STEPS:
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def expected() -> Result:
    return plain_loop()


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_zero_stage_gives_the_losses_of_a_plain_loop(
    world_size: int, expected: Result, tmp_path: Path
):
    legs = [f"{stage}:0:{worker.STEPS}:-:-" for stage in STAGES]
    results = run_legs(tmp_path / "results.json", world_size, *legs)
    for found in results:
        assert_same(found, expected)
    assert len({tuple(found["samples"]) for found in results}) == 1


def test_elastic_other_processes_and_zero_stages_between_give_an_unbroken_run(
    expected: Result, tmp_path: Path
):
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    out = tmp_path / "results.json"
    results = run_legs(out, 2, f"3:0:1:-:{a}", f"2:1:2:{a}:{b}")
    results += run_legs(out, 1, f"1:2:3:{b}:{c}", f"3:3:4:{c}:{d}", f"1:0:1:-:{tmp_path / 'f'}")
    assert_same(results.pop(), expected)
    results += run_legs(out, 2, f"0:4:5:{d}:{e}", f"3:5:6:{e}:-")
    for first, found in enumerate(results):
        assert_same(found, expected, first)


@pytest.mark.parametrize(
    ("optimization", "stages", "world_size"),
    [
        ("activation_checkpointing=true", (0, 1, 2, 3), 2),
        ("fused_optimizer=false", (0, 1, 2, 3), 2),
        ("channels_last=true", (0, 1, 3), 1),
        ("offload_optimizer=true", (1, 2, 3), 2),
        ("micro_batch_size=4", (0, 2, 3), 1),
        ("compile=true", (0, 1), 1),
        ("compile=true", (2,), 2),
    ],
)
def test_a_lever_moves_no_loss_at_any_zero_stage(
    optimization: str, stages: tuple[int, ...], world_size: int, expected: Result, tmp_path: Path
):
    legs = [f"{stage}:0:{worker.STEPS}:-:-:{optimization}" for stage in stages]
    for found in run_legs(tmp_path / "results.json", world_size, *legs):
        assert_same(found, expected)


def test_the_same_samples_skip_their_branches_at_any_zero_stage_and_with_checkpointing(
    expected: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ENVIRONMENT, "DROP_PATH", "0.5")
    legs = [f"{stage}:0:{worker.STEPS}:-:-" for stage in STAGES]
    legs += [f"{leg}:activation_checkpointing=true" for leg in legs]
    first, *others = run_legs(tmp_path / "results.json", 2, *legs)
    for found in others:
        assert_same(found, first)
    assert first["losses"] != pytest.approx(expected["losses"], abs=1e-3)


def test_elastic_levers_may_change_on_the_way(expected: Result, tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    out = tmp_path / "results.json"
    optimizations = "offload_optimizer=true:activation_checkpointing=true"
    results = run_legs(
        out, 2, f"2:0:2:-:{a}:{optimizations}", f"1:2:4:{a}:{b}:fused_optimizer=false"
    )
    results += run_legs(out, 1, f"3:4:6:{b}:-:offload_optimizer=true:micro_batch_size=8")
    for first, found in zip((0, 2, 4), results, strict=True):
        assert_same(found, expected, first)


def test_bfloat16_is_the_same_at_every_zero_stage_and_follows_float32(
    expected: Result, tmp_path: Path
):
    legs = [f"{stage}:0:{worker.STEPS}:-:-:precision=bfloat16" for stage in STAGES]
    results = run_legs(tmp_path / "results.json", 2, *legs)
    for found in results:
        torch.testing.assert_close(found["losses"], results[0]["losses"], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=5e-3, atol=0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_float16_with_loss_scaling_follows_float32_at_every_zero_stage(
    world_size: int, expected: Result, tmp_path: Path
):
    legs = [f"{stage}:0:{worker.STEPS}:-:-:precision=float16" for stage in STAGES]
    for found in run_legs(tmp_path / "results.json", world_size, *legs):
        assert found["applied"] == [True] * worker.STEPS
        assert found["loss_scales"] == [2.0**16] * worker.STEPS
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=5e-3, atol=0)
        torch.testing.assert_close(found["grad_norms"], expected["grad_norms"], rtol=2e-2, atol=0)


def test_a_loss_scale_that_is_too_high_is_halved_until_it_fits_and_is_kept_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ENVIRONMENT, "FIRST_LOSS_SCALE", str(2.0**22))
    half = "precision=float16"
    legs = [f"{stage}:0:4:-:{tmp_path / str(stage)}:{half}" for stage in STAGES]
    out = tmp_path / "results.json"
    whole = run_legs(out, 1, *legs)
    monkeypatch.delitem(ENVIRONMENT, "FIRST_LOSS_SCALE")
    later = run_legs(out, 1, *(f"{3 - s}:4:6:{tmp_path / str(s)}:-:{half}" for s in STAGES))
    for found, after in zip(whole, later, strict=True):
        skipped = found["applied"].index(True)
        assert 0 < skipped < 4
        scales = [2.0 ** (22 - min(step, skipped)) for step in range(4)]
        assert found["loss_scales"] == scales
        assert found["overflowed"] == [not applied for applied in found["applied"]]
        assert after["loss_scales"] == [scales[-1]] * 2
        torch.testing.assert_close(found["losses"], whole[0]["losses"], rtol=5e-3, atol=0)
        torch.testing.assert_close(after["losses"], later[0]["losses"], rtol=5e-3, atol=0)
