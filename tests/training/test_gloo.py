"""Our gathering between CPUs gives what torch's own gives; three ranks, small, large and odd sizes.

This file is also the program of a rank: `python -m tests.training.test_gloo`.
"""

import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from ssl_vit.training.gloo import gather_by_broadcasts
from tests.command_line import run_group

ROOT, WORLD = Path(__file__).parents[2], 3
SIZES = (1, 7, 20_000)  # of a rank's part


def check_rank() -> None:
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for size in SIZES:
        for in_background in (False, True):
            torch.manual_seed(10 * rank + size)
            part = torch.randn(size)
            theirs, ours = torch.empty(WORLD * size), torch.empty(WORLD * size)
            dist.all_gather_into_tensor(theirs, part)
            if (handle := gather_by_broadcasts(ours, part, async_op=in_background)) is not None:
                handle.wait()
            assert torch.equal(theirs, ours)
            gather_by_broadcasts(ours, ours[rank * size : (rank + 1) * size])  # in place
            assert torch.equal(theirs, ours)
    dist.barrier()
    dist.destroy_process_group()


def test_it_gives_what_torchs_own_gives():
    ranks = run_group([("-m", "tests.training.test_gloo")] * WORLD, cwd=ROOT)
    assert all(rank.returncode == 0 for rank in ranks), [rank.stderr for rank in ranks]


if __name__ == "__main__":
    check_rank()
