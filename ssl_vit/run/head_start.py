"""The head that a run starts with, where its objective fits one to features of the backbone that it
was given.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from ssl_vit.data.labels import hold_out
from ssl_vit.data.order import SampleRef
from ssl_vit.errors import UserError
from ssl_vit.foreign import first_line
from ssl_vit.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ssl_vit.objectives.objective import HeadStart, Objective
    from ssl_vit.run.pretrain import Prepared

T = TypeVar("T")
_BATCH = 32
_EPOCHS = 2  # views of each image, where there are few


class _Seen(NamedTuple):
    """What the head would see of n views."""

    inputs: "Tensor"
    """(n, D) float32 on the CPU."""
    numbers: np.ndarray
    """(n,) sample numbers of the images."""


def find_head(
    objective: "Objective", prepared: "Prepared", device: "torch.device"
) -> "HeadStart | None":
    """The head of a new run, if its objective wants one fitted; every rank calls it.

    The features are of views as in training: a head fitted to center crops alone fits them so
    closely that it fails on random crops, and on a backbone that has changed a little. Each rank
    computes a share of them, the first one fits, all get its head.

    Args:
        objective: Built identically on every rank, on the CPU, where it is again afterwards.
        prepared: The run.
        device: Where features are computed.

    Returns:
        None if the run needs none: it has a head already.

    Raises:
        UserError: Images cannot be read, or features are not finite; raised on every rank.
    """
    from ssl_vit.run.start import find_checkpoint, has_checkpoints
    from ssl_vit.training.consensus import gather

    config, processes, shards = prepared.config, prepared.processes, prepared.shards
    most = config.objective.fits_head
    if not most or shards is None or has_checkpoints(prepared.folder):
        return None
    if config.resume_from and find_checkpoint(config.resume_from) is not None:
        return None  # the head was learned, and is loaded
    labels = shards.labels
    chosen = np.arange(len(labels))
    if len(labels) > most:
        chosen = hold_out(np.zeros_like(labels), most / len(labels))[1]
    epochs = min(_EPOCHS, max(1, most // len(chosen)))
    refs = [SampleRef(number, epoch) for epoch in range(epochs) for number in chosen.tolist()]
    objective.to(device).eval()
    mine = refs[processes.rank :: processes.world_size]
    parts = gather(_or_error(lambda: _see(objective, prepared, mine, device)), processes)
    head = None
    if processes.is_first:
        head = _or_error(lambda: _fit(objective, parts, labels, device))
    found = gather(head, processes)[0]
    assert found is not None
    objective.cpu().train()
    if isinstance(found, UserError):
        raise found
    if processes.is_first:
        print(found.note, file=sys.stderr, flush=True)
    return found


def take_head(objective: "Objective", head: "HeadStart | None") -> None:
    """Load the head, if there is one, into an objective that was built in the same way."""
    if head is not None:
        odd = objective.load_state_dict(head.state, strict=False).unexpected_keys
        assert not odd, odd


def _or_error(work: Callable[[], T]) -> T | UserError:
    """The result, or what went wrong: other ranks wait for either."""
    try:
        return work()
    except UserError as error:
        return error
    except (MemoryError, RuntimeError) as error:
        return UserError(
            f"the linear probe for the head failed: {first_line(error)}",
            "set objective.head=small to start from a small random head",
        )


def _fit(
    objective: "Objective",
    parts: Sequence[_Seen | UserError],
    labels: np.ndarray,
    device: "torch.device",
) -> "HeadStart":
    """The head for what all ranks saw."""
    import torch

    seen = []
    for part in parts:
        if isinstance(part, UserError):
            raise part
        seen.append(part)
    inputs = torch.cat([part.inputs for part in seen]).to(device)
    numbers = np.concatenate([part.numbers for part in seen])
    if not torch.isfinite(inputs).all():
        raise UserError(
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
) -> _Seen:
    """What the head would see of these samples."""
    import torch

    from ssl_vit.data.dataset import TrainingBatches
    from ssl_vit.objectives.build import build_views
    from ssl_vit.training.engine import to_device

    config, shards = prepared.config, prepared.shards
    assert shards is not None
    views = build_views(config.objective, config.backbone)
    maker = TrainingBatches(shards, views, config.seed, config.data.values)
    inputs, numbers = [torch.empty(0, config.backbone.width)], [torch.empty(0, dtype=torch.int64)]
    shown: contextlib.AbstractContextManager[Callable[[int], None]]
    shown = contextlib.nullcontext(lambda count: None)
    if prepared.processes.is_first:
        shown = progress("features for the head", len(refs), "views")
    with shown as advance:
        for first in range(0, len(refs), _BATCH):
            some = refs[first : first + _BATCH]
            memory = torch.empty(maker.num_bytes(len(some)), dtype=torch.uint8)
            loaded = maker.make(some, memory)
            if loaded.failure is not None:
                raise loaded.failure
            inputs.append(objective.head_inputs(to_device(loaded.batch, device)).float().cpu())
            numbers.append(loaded.batch.numbers)
            advance(len(some))
    return _Seen(torch.cat(inputs), torch.cat(numbers).numpy())
