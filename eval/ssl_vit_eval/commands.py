"""`ssl-vit eval …`: options are checked and shards opened before torch is imported."""

from pathlib import Path
from typing import Annotated

import typer

from ssl_vit.distributed import compute_beside_workers

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Evaluate an export: its features beside raw pixels and the untrained network, or its "
    "classifier.",
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


@app.command()
def classifier(
    run: RunArgument,
    test: TestOption,
    train: Annotated[
        str,
        typer.Option(
            "--train",
            help="Labeled shards it was trained on: shows k-NN and linear probe of the backbone it "
            "started from beside it.",
        ),
    ] = "",
    known_classes_only: KnownOption = False,
    value_range: RangeOption = None,
    crop_ratio: CropOption = 0.875,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
) -> None:
    """A fine-tuned classifier on test images: scores by class, confusion matrix, calibration."""
    from ssl_vit.data.values import parse_range
    from ssl_vit_eval.classifier import check_classifier_inputs, publish
    from ssl_vit_eval.frozen import beside_of, find_start
    from ssl_vit_eval.inputs import Reading

    reading = Reading.checked(crop_ratio, batch_size, workers, device)
    inputs = check_classifier_inputs(
        run, test, reading, known_classes_only, parse_range(value_range)
    )
    start = find_start(inputs, train) if train else None
    compute_beside_workers()

    from ssl_vit_eval.baselines import choose_device
    from ssl_vit_eval.classifying import probabilities_of

    place = choose_device(device)
    probabilities = probabilities_of(inputs, place)
    publish(inputs, probabilities, beside_of(inputs, start, place) if start else None)


def finetune(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Pre-trained run (its newest export) or export folder."),
    ],
    run: Annotated[
        Path, typer.Option("--run", help="Run folder: created, or resumed by the same command.")
    ],
    train: Annotated[str, typer.Option("--train", help="Labeled shards to train on.")],
    val: Annotated[
        str, typer.Option("--val", help="Labeled shards for validation [a tenth of train].")
    ] = "",
    test: Annotated[
        str, typer.Option("--test", help="Labeled shards that the result is tested on, once.")
    ] = "",
    image_size: Annotated[
        list[int] | None,
        typer.Option(
            "--image-size",
            min=1,
            help="Side of the crops in pixels; twice for height and width [as pre-trained].",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="Fine-tuning recipe [chosen by the export's].")
    ] = "",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as path=value, as for pretrain.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A trial of 20 steps, in the full network and size.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Time budget of the run.")
    ] = None,
    print_only: Annotated[
        bool,
        typer.Option(
            "--print",
            help="Only print recipe and settings, for `ssl-vit pretrain` or `launch submit`.",
        ),
    ] = False,
) -> None:
    """Train a classifier from a pre-trained backbone; run the same command again to resume."""
    import re
    import shlex

    from ssl_vit.distributed import read_processes
    from ssl_vit.recipes import read_config
    from ssl_vit.run.minutes import with_minutes
    from ssl_vit.run.pretrain import prepare, start
    from ssl_vit_eval.finetune import check_test_set, plan_finetuning

    own = with_minutes(overrides or [], minutes)
    sizes = image_size or []
    plan = plan_finetuning(
        source, run, train, sizes, validation=val, recipe=recipe, is_smoke=smoke, overrides=own
    )
    if test:
        objective = read_config(plan.recipe, plan.words, is_smoke=False).objective
        check_test_set(test, train, getattr(objective, "label_separator", ""))
    if print_only:
        words = [plan.recipe, *plan.words]
        # The shell of a $(…) splits at blanks and keeps quotes as they are.
        is_plain = not any(re.search(r"[\s'\"\\]", word) for word in words)
        typer.echo(" ".join(words) if is_plain else shlex.join(words))
        if not is_plain:
            typer.echo('these words need quotes; use them as  eval "… $(…)"', err=True)
        return
    typer.echo("\n".join([f"{plan.recipe}, from {plan.export}", *plan.notes]), err=True)
    if code := start(prepare(plan.recipe, run, plan.words, is_smoke=False)):
        raise typer.Exit(code)
    if test and read_processes().is_first:
        classifier(run, test, train)


def predict(
    model: Annotated[
        Path, typer.Argument(help="Fine-tuned run (its newest export) or export folder.")
    ],
    images: Annotated[
        str, typer.Argument(metavar="IMAGES|SHARDS", help="Folder of images, or shards.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="CSV with path, class, probability and problem.")
    ],
    value_range: RangeOption = None,
    crop_ratio: CropOption = 0.875,
    batch_size: BatchOption = None,
    device: DeviceOption = "auto",
) -> None:
    """The class of every image, by a fine-tuned classifier, as a CSV."""
    from ssl_vit.data.values import parse_range
    from ssl_vit_eval.inputs import Reading
    from ssl_vit_eval.prediction import check_prediction
    from ssl_vit_eval.prediction import predict as classify

    reading = Reading.checked(crop_ratio, batch_size, 0, device)
    prediction = check_prediction(model, images, out, reading, parse_range(value_range))
    compute_beside_workers()

    from ssl_vit_eval.baselines import choose_device

    written = classify(prediction, choose_device(device))
    for note in prediction.notes:
        typer.echo(f"- {note}")
    found = ", ".join(f"{name} {count:,}" for name, count in written.counts.items() if count)
    typer.echo(f"{written.classified:,} images: {found or 'none'}")
    if written.unreadable:
        typer.echo(f"{written.unreadable:,} could not be read: see the column `problem`")
    typer.echo(f"written: {out}")
