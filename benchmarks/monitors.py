"""Cost of the monitors: one check of features, compared with a training step of the recipe.

    python benchmarks/monitors.py [--turns 20]

Both run on this machine's CPU, as monitors always do. Steps are measured for the recipes for small
machines only; for larger backbones, compare a check with `monitor.every_steps` of your own steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from ssl_vit.data.order import SampleRef
from ssl_vit.data.synthetic import SyntheticBatches
from ssl_vit.models.config import VIT_SIZES
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.monitors.collapse import CollapseWatch
from ssl_vit.monitors.config import MonitorConfig
from ssl_vit.monitors.monitor import Monitor
from ssl_vit.objectives.build import build_objective, build_views
from ssl_vit.objectives.objective import Observed
from ssl_vit.recipes import find_recipe

RECIPES = ("mae_small_data", "dinov2_small_data")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=20)
    turns = parser.parse_args().turns
    every = MonitorConfig().every_steps
    print(f"seconds, median of {turns} (10th to 90th percentile); a check every {every} steps")
    for size, facts in VIT_SIZES.items():
        look = look_of(facts["width"])
        print(f"a check of {size}'s features ({facts['width']} wide): {summary(look, turns)}")
    for name in RECIPES:
        step = step_of(name)
        look = look_of(find_recipe(name).backbone.width)
        seconds, watched = timed(step, turns), timed(look, turns)
        share = statistics.median(watched) / every / statistics.median(seconds)
        print(f"{name}: a step {words(seconds)}, a check {words(watched)}: {share:.2%} of the time")


def look_of(width: int) -> Callable[[], object]:
    """One check of a full buffer."""
    config = MonitorConfig(every_steps=1)
    monitor = Monitor(config, CollapseWatch(find_recipe(RECIPES[0]).objective, 0))
    features = torch.randn(config.buffer, width)
    observed = [Observed(features, torch.arange(config.buffer), config.buffer)]
    return lambda: monitor.look(0, observed, {})


def step_of(name: str) -> Callable[[], object]:
    """Forward and backward pass of a recipe's micro-batch, in bfloat16."""
    config = find_recipe(name)
    model = VisionTransformer(config.backbone)
    objective = build_objective(config.objective, model, config.data, 100)
    images = [SampleRef(number, 0) for number in range(config.data.global_batch_size)]
    views = build_views(config.objective, config.backbone)
    batch = next(SyntheticBatches(views, iter([images]), config.seed)).batch

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = objective(batch, 0)
        output.loss.backward()
        objective.zero_grad()

    return step


def timed(act: Callable[[], object], turns: int) -> list[float]:
    """Seconds of each turn, after one untimed turn."""
    act()
    found = []
    for _ in range(turns):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return found


def summary(act: Callable[[], object], turns: int) -> str:
    """Median and spread of the seconds of a turn, as text."""
    return words(timed(act, turns))


def words(seconds: list[float]) -> str:
    """Median and spread, as text."""
    low, *_, high = statistics.quantiles(seconds, n=10)
    return f"{statistics.median(seconds):.4f} ({low:.4f}–{high:.4f})"


if __name__ == "__main__":
    main()
