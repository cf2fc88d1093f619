"""`ssl-vit eval …`: options are checked and shards opened before torch is imported."""

from pathlib import Path
from typing import Annotated

import typer

from ssl_vit.distributed import compute_beside_workers

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Evaluate an export, with raw pixels and the same network untrained as baselines.",
)

RunArgument = Annotated[
    Path, typer.Argument(help="Run folder (its newest export is used) or export folder.")
]
TrainOption = Annotated[str, typer.Option("--train", help="Labeled shards to learn from.")]
TestOption = Annotated[str, typer.Option("--test", help="Labeled shards to test on.")]
CropOption = Annotated[
    float, typer.Option(help="Side of the center crop over the image's shorter side, at most 1.")
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=2**16, help="Images per forward pass [default: 32 on CPU, 256 on CUDA]."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, max=1024, help="Decoding processes [default: cores - 1, at most 8]."),
]
KnownOption = Annotated[
    bool,
    typer.Option(
        "--known-classes-only",
        help="Leave out test images of classes that train lacks, which are refused otherwise.",
    ),
]
RangeOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--value-range",
        metavar="LOW HIGH",
        help="Stored values of black and white in images of more than 8 bits, for an export "
        "without a value range.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:NUMBER.")]


def _check_ks(text: str | None) -> str | None:
    """Refuse a bad --k when the command line is parsed, so that `launch submit --then` does too."""
    from ssl_vit_eval.inputs import parse_ks

    parse_ks(text)
    return text


@app.command()
def knn(
    run: RunArgument,
    train: TrainOption,
    test: TestOption,
    k: Annotated[
        str | None,
        typer.Option(
            "--k",
            callback=_check_ks,
            help="Numbers of neighbors, by commas; the best counts [default: 10,20,100,200].",
        ),
    ] = None,
    known_classes_only: KnownOption = False,
    value_range: RangeOption = None,
    crop_ratio: CropOption = 0.875,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Weighted k-nearest neighbors on frozen features (DINO's protocol)."""
    from ssl_vit.data.values import parse_range
    from ssl_vit_eval.inputs import EvaluationOptions, check_inputs, parse_ks

    ks = parse_ks(k)
    options = EvaluationOptions(
        known_classes_only, max(ks, default=0), values=parse_range(value_range)
    )
    inputs = check_inputs(run, train, test, crop_ratio, batch_size, workers, device, options)
    compute_beside_workers()

    from ssl_vit_eval.baselines import choose_device, collect
    from ssl_vit_eval.knn import evaluate
    from ssl_vit_eval.report import publish

    place = choose_device(device)
    publish(inputs, evaluate(collect(inputs, place), place, ks))


@app.command()
def linear(
    run: RunArgument,
    train: TrainOption,
    test: TestOption,
    known_classes_only: KnownOption = False,
    value_range: RangeOption = None,
    epochs: Annotated[
        int, typer.Option(min=1, max=10**6, help="Passes over the train features.")
    ] = 100,
    crop_ratio: CropOption = 0.875,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
) -> None:
    """A linear classifier on frozen features; its learning rate is chosen on a tenth of train."""
    from ssl_vit.data.values import parse_range
    from ssl_vit_eval.inputs import EvaluationOptions, check_inputs

    options = EvaluationOptions(known_classes_only, holds_out=True, values=parse_range(value_range))
    inputs = check_inputs(run, train, test, crop_ratio, batch_size, workers, device, options)
    compute_beside_workers()

    from ssl_vit_eval.baselines import choose_device, collect
    from ssl_vit_eval.linear import LinearSettings, evaluate
    from ssl_vit_eval.report import publish

    place = choose_device(device)
    publish(inputs, evaluate(collect(inputs, place), place, LinearSettings(epochs=epochs)))
