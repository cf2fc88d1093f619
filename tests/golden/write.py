"""The only writer of the golden files: `make golden`, or `make golden RECIPES=…` for some recipes.
The commit that moves one says why.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ssl_vit.objectives.config import DinoConfig
from ssl_vit.recipes import RECIPES, find_recipe
from tests.command_line import losses, ssl_vit
from tests.given import given_words
from tests.launch import test_batch
from tests.synthetic import write_shards
from tests.training import test_zero_config

FOLDER = Path(__file__).parent

# LayerScale at which the class tokens of an untrained network differ by more than rounding.
_LAYER_SCALE = 0.1


def conditioned(recipe: str) -> tuple[str, ...]:
    """Settings with which a recipe's losses are the same on every kind of processor.

    KoLeo pushes an image along the unit vector from its nearest neighbor. With LayerScale at 1e-5
    the class tokens of an untrained network are nearly equal: in these smoke twins the nearest
    neighbors are 3e-6 apart, 40 roundings of float32, so that the vector is wrong by percents and
    AdamW makes full-sized updates of it. Perturbing the weights by 1e-7 then moves the losses by
    5e-3. It moves them by 4e-7 without KoLeo, and as little with KoLeo and a LayerScale of 0.1,
    where the nearest neighbors are 2e-2 apart. (SwiGLU and the second head make no difference.)
    """
    config = find_recipe(recipe)
    koleo = isinstance(config.objective, DinoConfig) and config.objective.koleo_weight > 0
    if koleo and 0 < config.backbone.layer_scale < _LAYER_SCALE:
        return (f"backbone.layer_scale={_LAYER_SCALE}",)
    return ()


def smoke_losses(recipe: str, folder: Path) -> list[float]:
    """The losses of a recipe's smoke twin on the synthetic shards, :func:`conditioned`."""
    shards = folder / "shards"
    if not shards.exists():
        write_shards(folder)
    run = folder / recipe
    words = (
        *(f"data.shards={shards}", *conditioned(recipe)),
        *given_words(recipe, shards, folder),
    )
    done = ssl_vit("pretrain", recipe, "--smoke", "--run", run, *words)
    assert done.returncode == 0, done.stderr
    return [loss for _, loss, _ in losses(run)]


def main(recipes: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes or RECIPES:
            golden = FOLDER / f"{recipe}.json"
            golden.write_text(json.dumps(smoke_losses(recipe, Path(folder)), indent=1) + "\n")
            print(f"wrote {golden}")
    if recipes:
        return 0
    text = json.dumps(test_zero_config.written(), indent=1)
    test_zero_config.GOLDEN.write_text(text + "\n")
    print(f"wrote {test_zero_config.GOLDEN}")
    test_batch.GOLDEN.write_text(test_batch.written())
    print(f"wrote {test_batch.GOLDEN}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
