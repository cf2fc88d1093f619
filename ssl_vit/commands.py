"""The commands of the library itself. Nothing slow is imported at the top: this file is read for
every `--help`.
"""

from pathlib import Path
from typing import Annotated

import typer

RunOption = Annotated[
    Path, typer.Option("--run", help="Run folder: created, or resumed by the same command.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as path=value, e.g. data.shards=SHARDS.")
]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        "--minutes", help="Time budget of the run; the number of steps follows from the rate."
    ),
]


def pretrain(
    recipe: Annotated[
        str, typer.Argument(help="A recipe (see `ssl-vit recipes`) or a config.yaml.")
    ],
    run: RunOption,
    overrides: Overrides = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink the recipe to a few seconds on one core.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Profile a few steps into RUN/profile.")
    ] = False,
    minutes: MinutesOption = None,
) -> None:
    """Pre-train a backbone; run the same command again to resume."""
    from ssl_vit.run.minutes import with_minutes
    from ssl_vit.run.pretrain import prepare, start

    prepared = prepare(recipe, run, with_minutes(overrides or [], minutes), smoke)
    raise typer.Exit(start(prepared, profile))


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe or a config.yaml.")],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=2**20, help="Total GPUs.")] = 1,
    device: Annotated[
        str, typer.Option("--device", help="GPU model, such as a100 or v100.")
    ] = "h100",
    mfu: Annotated[
        float,
        typer.Option(
            "--mfu",
            help="Expected model FLOPs utilization, for the hours; the default is what large ViTs "
            "reached on an H200 (docs/benchmarks.md).",
        ),
    ] = 0.22,
    images: Annotated[
        int,
        typer.Option(
            "--images",
            min=0,
            max=2**40,
            help="Images in the data set, if data.shards is not given [ImageNet-1k's].",
        ),
    ] = 0,
    network: Annotated[
        float,
        typer.Option(
            "--network",
            help="GB/s that each GPU sends to other machines; 50 is one 400 Gbit/s adapter for "
            "each, 1.25 one of 10 Gbit/s.",
        ),
    ] = 50.0,
    minutes: MinutesOption = None,
) -> None:
    """Estimate what a run needs: memory, communication, hours, disk. Starts nothing; exit code 1 if
    it does not fit.
    """
    from ssl_vit.cost.plan_report import print_estimate
    from ssl_vit.recipes import read_config
    from ssl_vit.run.minutes import with_minutes

    config = read_config(recipe, with_minutes(overrides or [], minutes), is_smoke=False)
    if not print_estimate(config, gpus, device, mfu, images, network):
        raise typer.Exit(1)


def recipes(
    name: Annotated[str, typer.Argument(help="Show this recipe's complete config.")] = "",
) -> None:
    """List the recipes, or print one as YAML with every setting explained."""
    from ssl_vit.recipes import RECIPES, find_recipe
    from ssl_vit.settings import commented_yaml

    if name:
        config = find_recipe(name)
        typer.echo(commented_yaml(config, RECIPES[name].description()), nl=False)
        return
    width = 2 + max(map(len, RECIPES))
    for recipe in RECIPES.values():
        typer.echo(f"{recipe.name:{width}}{recipe.title}; {recipe.source}")
        typer.echo(f"{'':{width}}expected: {recipe.expected}")
    typer.echo("\nOne as YAML, with every setting explained:  ssl-vit recipes NAME")


def demo(
    folder: Annotated[
        Path, typer.Option("--folder", help="Folder for everything the demo makes.")
    ] = Path("demo"),
) -> None:
    """From a folder of solar-cell images to a benchmarked backbone, in about ten minutes."""
    from ssl_vit.demo import run_demo

    run_demo(folder)
