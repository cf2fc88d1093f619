"""Smoke runs that make the networks which other recipes read: a teacher, a tokenizer."""

from pathlib import Path

from ssl_vit.recipes import find_recipe
from tests.command_line import ssl_vit

MAKERS = {"backbone": "mae_small_data", "tokenizer": "tokenizer_pixels_small_data"}


def given_words(recipe: str, shards: Path, folder: Path) -> tuple[str, ...]:
    """The words with which a recipe's run gets the network that it reads.

    Args:
        recipe: Name of the recipe.
        shards: Data to train that network on.
        folder: Where its run is kept, for the next recipe that needs one.
    """
    given = find_recipe(recipe).objective.given
    if given is None:
        return ()
    run = folder / f"given_{given.kind}"
    if not (run / "exports").exists():
        done = ssl_vit(
            "pretrain", MAKERS[given.kind], "--smoke", "--run", run, f"data.shards={shards}"
        )
        assert done.returncode == 0, done.stderr
    return (f"objective.{given.setting}={run}",)
