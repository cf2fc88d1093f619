"""The head that a run starts with, where its objective fits one to features of the backbone that it
was given.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssl_vit.data.labels import hold_out
from ssl_vit.data.order import SampleRef
from ssl_vit.errors import UserError
from ssl_vit.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ssl_vit.objectives.objective import HeadStart, Objective
    from ssl_vit.run.pretrain import Prepared

_BATCH = 32
_EPOCHS = 2  # views of each image, where there are few


class _Seen(NamedTuple):
    """What the head would see of n views."""

    inputs: "Tensor"
    """(n, D) float32 on the CPU."""
    numbers: np.ndarray
    """(n,) sample numbers of the images."""


def fit_head(objective: "Objective", prepared: "Prepared", device: "torch.device") -> None:
    """Fit the head of a new run, if its objective wants it; every rank calls it.

    The features are of views as in training: on center crops alone, a head fits so closely that
    random crops, and soon a changed backbone, are beyond it. Each rank computes a share of them,
    the first one fits, all take its head.

    Args:
        objective: Built identically on every rank, on the CPU, where it is again afterwards.
        prepared: The run.
        device: Where features are computed.

    Raises:
        UserError: Images cannot be read, or features are not finite; raised on every rank.
    """
    from ssl_vit.run.start import find_checkpoint, has_checkpoints
    from ssl_vit.training.consensus import gather

    config, processes, shards = prepared.config, prepared.processes, prepared.shards
    most = config.objective.fits_head
    if not most or shards is None or has_checkpoints(prepared.folder):
        return
    if config.resume_from and find_checkpoint(config.resume_from) is not None:
        return  # the head was learned, and is loaded
    labels = shards.labels
    chosen = np.arange(len(labels))
    if len(labels) > most:
        chosen = hold_out(labels, most / len(labels))[1]
    epochs = min(_EPOCHS, max(1, most // len(chosen)))
    refs = [SampleRef(number, epoch) for epoch in range(epochs) for number in chosen.tolist()]
    objective.to(device).eval()
    parts = gather(
        _see(objective, prepared, refs[processes.rank :: processes.world_size], device), processes
    )
    mine = _fit(objective, parts, labels, device) if processes.is_first else None
    found = gather(mine, processes)[0]
    assert found is not None
    if isinstance(found, UserError):
        raise found
    objective.cpu().train()
    objective.load_state_dict(found.state, strict=False)
    if processes.is_first:
        print(found.note, file=sys.stderr, flush=True)


def _fit(
    objective: "Objective",
    parts: Sequence[_Seen | UserError],
    labels: np.ndarray,
    device: "torch.device",
) -> "HeadStart | UserError":
    """The head for what all ranks saw, or why there is none."""
    import torch

    seen = [part for part in parts if isinstance(part, _Seen)]
    if len(seen) < len(parts):
        return next(part for part in parts if isinstance(part, UserError))
    inputs = torch.cat([part.inputs for part in seen]).to(device)
    numbers = np.concatenate([part.numbers for part in seen])
    if not torch.isfinite(inputs).all():
        return UserError(
            "objective.head=probe: features of the backbone are not finite",
            "start from an earlier export of the run that it comes from",
        )
    wanted = torch.from_numpy(labels[numbers].astype(np.int64)).to(device)
    return objective.fit_head(inputs, wanted, torch.from_numpy(numbers).to(device))


def _see(
    objective: "Objective",
    prepared: "Prepared",
    refs: Sequence[SampleRef],
    device: "torch.device",
) -> _Seen | UserError:
    """What the head would see of these samples, or why they cannot be made."""
    import torch

    from ssl_vit.data.dataset import TrainingBatches
    from ssl_vit.objectives.build import build_views
    from ssl_vit.training.engine import to_device

    config, shards = prepared.config, prepared.shards
    assert shards is not None
    views = build_views(config.objective, config.backbone)
    maker = TrainingBatches(shards, views, config.seed, config.data.values)
    inputs, numbers = [torch.empty(0, config.backbone.width)], [torch.empty(0, dtype=torch.int64)]
    with progress("features for the head", len(refs), "views") as advance:
        for first in range(0, len(refs), _BATCH):
            some = refs[first : first + _BATCH]
            memory = torch.empty(maker.num_bytes(len(some)), dtype=torch.uint8)
            loaded = maker.make(some, memory)
            if loaded.failure is not None:
                return loaded.failure
            inputs.append(objective.head_inputs(to_device(loaded.batch, device)).float().cpu())
            numbers.append(loaded.batch.numbers)
            advance(len(some))
    return _Seen(torch.cat(inputs), torch.cat(numbers).numpy())
