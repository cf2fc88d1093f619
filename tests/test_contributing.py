"""The example in CONTRIBUTING.md is code: it is read from there and trained for a moment."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ssl_vit.data.config import IMAGENET_MEAN, IMAGENET_STD
from ssl_vit.models.config import VitConfig
from ssl_vit.models.patches import patchify
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.objectives.objective import Objective, Observed, StepOutput
from ssl_vit.objectives.pixels import PixelScale

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def test_the_ten_line_objective_trains():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names: dict[str, Any] = {
        "Objective": Objective,
        "StepOutput": StepOutput,
        "Observed": Observed,
        "VisionTransformer": VisionTransformer,
        "PixelScale": PixelScale,
        "DenoiseConfig": SimpleNamespace,
        "DenoiseBatch": SimpleNamespace,
        "Tensor": torch.Tensor,
        "torch": torch,
        "nn": nn,
        "F": F,
        "patchify": patchify,
    }
    exec(code, names)
    torch.manual_seed(0)
    backbone = VisionTransformer(VitConfig(width=16, depth=1, heads=2, patch_size=4, image_size=8))
    objective = names["Denoise"](
        SimpleNamespace(noise=0.1), backbone, PixelScale(IMAGENET_MEAN, IMAGENET_STD)
    )
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    parameters = [p for group in objective.parameter_groups() for p in group.parameters]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for step in range(30):
        loss = objective(SimpleNamespace(images=images), step).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
