"""The head that a run starts with, where its objective fits one to features of the backbone that it
was given.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssl_vit.data.labels import hold_out
from ssl_vit.errors import UserError
from ssl_vit.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ssl_vit.objectives.objective import HeadStart, Objective
    from ssl_vit.run.pretrain import Prepared

_BATCH = 32


def fit_head(objective: "Objective", prepared: "Prepared", device: "torch.device") -> None:
    """Fit the head of a new run, if its objective wants it; every rank calls it.

    Each rank computes the features of a share of the images, the first one fits, all take its head.
    An image that cannot be read is left out.

    Args:
        objective: Built identically on every rank, on the CPU, where it is again afterwards.
        prepared: The run.
        device: Where features are computed.

    Raises:
        UserError: No image can be read, or features are not finite; raised on every rank.
    """
    from ssl_vit.run.start import has_checkpoints
    from ssl_vit.training.consensus import gather

    config, processes, shards = prepared.config, prepared.processes, prepared.shards
    most = config.objective.fits_head
    if not most or shards is None or has_checkpoints(prepared.folder):
        return
    labels = shards.labels
    chosen = np.arange(len(labels))
    if len(labels) > most:
        chosen = hold_out(labels, most / len(labels))[1]
    share = chosen[processes.rank :: processes.world_size]
    objective.to(device).eval()
    inputs, read = _features(objective, prepared, share, device)
    parts = gather((inputs, labels[read]), processes)
    mine = _fit(objective, parts, device) if processes.is_first else None
    found = gather(mine, processes)[0]
    assert found is not None
    if isinstance(found, UserError):
        raise found
    objective.cpu().train()
    objective.load_state_dict(found.state, strict=False)
    if processes.is_first:
        print(found.note, file=sys.stderr, flush=True)


def _fit(
    objective: "Objective", parts: Sequence[tuple["Tensor", np.ndarray]], device: "torch.device"
) -> "HeadStart | UserError":
    """The head for the inputs and labels of all ranks, or why there is none."""
    import torch

    inputs = torch.cat([part for part, _ in parts]).to(device)
    labels = np.concatenate([part for _, part in parts]).astype(np.int64)
    if not len(inputs):
        return UserError(
            "no training image could be read, to fit the head to",
            "ssl-vit shards check SHARDS  lists what is wrong with them",
        )
    if not torch.isfinite(inputs).all():
        return UserError(
            "objective.head=probe: features of the backbone are not finite",
            "start from an earlier export of the run that it comes from",
        )
    return objective.fit_head(inputs, torch.from_numpy(labels).to(device))


def _features(
    objective: "Objective", prepared: "Prepared", numbers: np.ndarray, device: "torch.device"
) -> tuple["Tensor", np.ndarray]:
    """(n, D) float32 inputs of the head on the CPU, and the (n,) sample numbers of those images
    that could be read.
    """
    import torch

    from ssl_vit.monitors.labeled_images import Share, read_share

    config, shards = prepared.config, prepared.shards
    assert shards is not None
    size, alone = config.backbone.height_width, Share(0, 1)
    found: list[Tensor] = [torch.empty(0, config.backbone.width)]
    read: list[int] = []
    images: list[Tensor] = []

    def encode() -> None:
        if images:
            pixels = torch.cat(images).to(device)
            found.append(objective.head_inputs(pixels).float().cpu())
            images.clear()

    with progress("features for the head", len(numbers), "images") as advance:
        for number in numbers.tolist():
            one = np.array([number])
            try:
                images.append(read_share(shards, one, size, alone, config.data.values)[0])
                read.append(number)
            except UserError:
                pass  # the run replaces such an image, and reports it
            if len(images) == _BATCH:
                encode()
            advance(1)
        encode()
    return torch.cat(found), np.array(read, dtype=np.int64)
