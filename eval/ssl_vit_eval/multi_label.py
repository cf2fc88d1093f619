"""Scores of a multi-label classifier, whose images may be of several classes or of none. No torch
here.

A class is predicted where its probability is at least 0.5.
"""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_vit.monitors.ranking import auroc, average_precision, mean_of
from ssl_vit_eval.tables import percent, print_table, with_interval

# M test images, C classes.

_LISTED_CLASSES = 20


def measure_multi_label(
    probabilities: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """All numbers, for JSON; shares in [0, 1], None where there is nothing to take a share of.

    Args:
        probabilities: (M, C) of a yes.
        labels: (M, C) bool.
        names: (C,) of the classes.
    """
    predicted = probabilities >= 0.5
    per_class = []
    for place, name in enumerate(names):
        own, yes = labels[:, place], predicted[:, place]
        support, positives, correct = int(own.sum()), int(yes.sum()), int((own & yes).sum())
        per_class.append(
            {
                "name": name,
                "support": support,
                "predicted": positives,
                "correct": correct,
                "average_precision": average_precision(probabilities[:, place], own),
                "auroc": auroc(probabilities[:, place], own),
                "recall": correct / support if support else None,
                "precision": correct / positives if positives else None,
                "f1": 2 * correct / (support + positives) if support else None,
            }
        )
    hits, total = (labels & predicted).sum(), predicted.sum() + labels.sum()
    return {
        "mean_average_precision": mean_of([each["average_precision"] for each in per_class]),
        "auroc": mean_of([each["auroc"] for each in per_class]),
        "macro_f1": mean_of([each["f1"] for each in per_class]),
        "micro_f1": float(2 * hits / total) if total else None,
        "all_right": float((predicted == labels).all(axis=1).mean()),
        "num_all_right": int((predicted == labels).all(axis=1).sum()),
        "per_class": per_class,
    }


def print_multi_label(console: Console, title: str, found: dict[str, Any], num_images: int) -> None:
    """Print the tables."""
    table = Table(title=Text(title), title_justify="left")
    cells = {
        "mean average precision %": percent(found["mean_average_precision"]),
        "AUROC %": percent(found["auroc"]),
        "macro-F1 %": percent(found["macro_f1"]),
        "micro-F1 %": percent(found["micro_f1"]),
        "all classes right %": with_interval(found["num_all_right"], num_images),
    }
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    print_table(console, table)
    console.print()
    tested = [each for each in found["per_class"] if each["support"]]
    more = ""
    if len(tested) > _LISTED_CLASSES:
        more = f": the {_LISTED_CLASSES} of {len(tested):,} with the lowest average precision"
        tested.sort(key=lambda each: each["average_precision"] or 0.0)
    table = Table(title=f"per class{more}", title_justify="left")
    table.add_column("class")
    columns = ("average_precision", "auroc", "recall", "precision", "f1")
    for name in (
        "test images",
        "average precision %",
        "AUROC %",
        "recall %",
        "precision %",
        "F1 %",
    ):
        table.add_column(name, justify="right")
    for each in tested[:_LISTED_CLASSES]:
        shares = [percent(each[name]) for name in columns]
        table.add_row(Text(each["name"]), f"{each['support']:,}", *shares)
    print_table(console, table)
