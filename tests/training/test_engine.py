"""The engine at ZeRO 0 to 2 on one and two processes, against a plain torch loop."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_vit.data.config import DataConfig
from ssl_vit.objectives.build import build_objective
from tests.training import engine_worker as worker

STAGES = (0, 1, 2)


def plain_loop() -> dict[str, list[float]]:
    """The same training in forty lines: whole batches, schedules by formula, torch's AdamW."""
    torch.manual_seed(worker.SEED)
    model = build_objective(worker.OBJECTIVE, worker.BACKBONE, DataConfig())
    matrices, others = [], []
    for name, parameter in model.named_parameters():
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
        losses.append(loss.item())
    weights = [float(p.detach().double().norm()) for p in model.parameters()]
    return {"losses": losses, "grad_norms": norms, "weights": weights}


def run_engine(out: Path, world_size: int) -> dict[str, dict[str, list[float]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    ranks = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(out), ",".join(map(str, STAGES))],
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


@pytest.fixture(scope="module")
def expected() -> dict[str, list[float]]:
    return plain_loop()


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_zero_stage_gives_the_losses_of_a_plain_loop(
    world_size: int, expected: dict[str, list[float]], tmp_path: Path
):
    results = run_engine(tmp_path / "results.json", world_size)
    digests = set()
    for stage in STAGES:
        found = results[str(stage)]
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=0, atol=1e-5)
        torch.testing.assert_close(found["grad_norms"], expected["grad_norms"], rtol=1e-4, atol=0)
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-4, atol=1e-5)
        digests.add(tuple(found["samples"]))
    assert len(digests) == 1
