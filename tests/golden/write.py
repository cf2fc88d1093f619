"""The only writer of the golden files: `make golden`. The commit that moves one says why."""

import json
import sys
import tempfile
from pathlib import Path

from ssl_vit.recipes import RECIPES
from tests.command_line import losses, ssl_vit
from tests.launch import test_batch
from tests.synthetic import write_shards
from tests.training import test_deepspeed_config

FOLDER = Path(__file__).parent


def smoke_losses(recipe: str, folder: Path) -> list[float]:
    """The losses of a recipe's smoke twin on the synthetic shards."""
    shards = folder / "shards"
    if not shards.exists():
        write_shards(folder)
    run = folder / recipe
    done = ssl_vit("pretrain", recipe, "--smoke", "--run", run, f"data.shards={shards}")
    assert done.returncode == 0, done.stderr
    return [loss for _, loss, _ in losses(run)]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for recipe in RECIPES:
            golden = FOLDER / f"{recipe}.json"
            golden.write_text(json.dumps(smoke_losses(recipe, Path(folder)), indent=1) + "\n")
            print(f"wrote {golden}")
    text = json.dumps(test_deepspeed_config.written(), indent=1)
    test_deepspeed_config.GOLDEN.write_text(text + "\n")
    print(f"wrote {test_deepspeed_config.GOLDEN}")
    test_batch.GOLDEN.write_text(test_batch.written())
    print(f"wrote {test_batch.GOLDEN}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
