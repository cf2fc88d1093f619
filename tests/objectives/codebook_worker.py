"""One rank of a codebook over several: `python -m tests.objectives.codebook_worker IN OUT`.

IN has the latents and the images' keys of each step, and how many images a micro-batch has; each
rank takes its part. OUT gets the codebook after the steps.
"""

import os
import sys

import numpy as np
import torch

from ssl_vit.objectives.tokenizer.codebook import Codebook


def follow_steps(
    latents: np.ndarray, keys: np.ndarray, images: int, rank: int = 0, ranks: int = 1
) -> Codebook:
    """The codebook after steps over (S, B, N, C) latents of images with (S, B) keys, in micro-
    batches of ``images``.
    """
    book = Codebook(4, latents.shape[-1], momentum=0.9, dead_below=0.5)
    for step, (rows, names) in enumerate(zip(latents, keys, strict=True)):
        share = len(rows) // ranks
        for first in range(rank * share, (rank + 1) * share, images):
            part = slice(first, first + images)
            book(torch.from_numpy(rows[part]), torch.from_numpy(names[part]), step)
        book.move_codes()
    return book


def main(source: str, target: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(rank)  # whatever the ranks start from, they end with the same codes
    given = np.load(source)
    book = follow_steps(given["latents"], given["keys"], int(given["images"]), rank, ranks)
    state = {name: value.numpy() for name, value in book.state_dict().items()}
    np.savez(f"{target}.{rank}", **state)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
