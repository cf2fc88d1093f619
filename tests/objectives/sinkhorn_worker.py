"""One rank of a distributed Sinkhorn-Knopp: `python -m tests.objectives.sinkhorn_worker IN OUT`.

IN has the logits, which rows count, and the number of rows per rank; OUT gets this rank's targets.
"""

import os
import sys

import numpy as np
import torch

from ssl_vit.objectives.dino.losses import Center, sinkhorn


def main(source: str, target: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    given = np.load(source)
    ends = np.cumsum(given["shares"])
    mine = slice(ends[rank] - given["shares"][rank], ends[rank])
    logits, counted = (torch.from_numpy(given[name][mine]) for name in ("logits", "counted"))
    center = Center(logits.shape[1])
    center(logits, 0.07, step=0, counted=counted)
    center.follow()
    np.savez(
        f"{target}.{rank}", targets=sinkhorn(logits, 0.07, counted), center=center.center.numpy()
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
