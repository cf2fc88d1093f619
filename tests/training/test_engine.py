"""The engine at ZeRO 0 to 3 on one and two processes, student and EMA teacher, in one go and in
legs with other stages and numbers of processes between them, against a plain torch loop.
"""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import engine_worker as worker

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
    losses, norms = [], []
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
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
        optimizer.step()
        with torch.no_grad():
            student, teacher = model.backbone.parameters(), model.teacher.module.parameters()
            for theirs, ours in zip(student, teacher, strict=True):
                ours.copy_(0.9 * ours + 0.1 * theirs)
        losses.append(loss.item())
    return {"losses": losses, "grad_norms": norms, "weights": worker.norms_of(model)}


def run_legs(out: Path, world_size: int, *legs: str) -> list[Result]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    ranks = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(out), *legs],
            env=environment
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    words = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(words)
    assert not any(word.strip() for word in words), f"library noise: {words}"
    return json.loads(out.read_text())


def assert_same(found: Result, expected: Result, first: int = 0) -> None:
    last = first + len(found["losses"])
    for name, rtol, atol in (("losses", 0, 1e-5), ("grad_norms", 1e-4, 0)):
        torch.testing.assert_close(found[name], expected[name][first:last], rtol=rtol, atol=atol)
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
