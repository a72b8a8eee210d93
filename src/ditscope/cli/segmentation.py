"""`ditscope eval MODEL --segmentation`: objects found from attention, against true masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ditscope.cli.console import print_table, results

if TYPE_CHECKING:
    import xarray

    from ditscope.evaluation.sources import Report
    from ditscope.pipeline import Pipeline

WORDS = {
    "iou": "intersection over union",
    "pointing": "pointing game",
    "auc": "area under the ROC curve",
    "ceiling": "highest IoU that patches allow",
}


def measured(pipe: Pipeline, scenes: int | None, report: Report) -> dict[str, Any]:
    """Everything that was measured and chosen, as plain data."""
    from ditscope.evaluation.segmentation import SCENES, segmentation

    found = segmentation(pipe, scenes=SCENES if scenes is None else scenes, report=report)
    return {
        "model": {"name": pipe.name, "weights_sha256": pipe.weights_sha256},
        "scenes": found.sizes["sample"],
        "scenes_seed": found.attrs["scenes_seed"],
        "noise_level": found.attrs["noise_level"],
        "parts": float(found["parts"].mean()),
        "measures": records(found),
    }


def show_segmentation(tree: dict[str, Any]) -> None:
    """The same for people."""
    print_table(("measure", "by", "mean", "95 % interval", "p"), rows(tree["measures"]))
    results().print(
        f"\n{tree['scenes']} scenes, noise {tree['noise_level']:g}, {tree['parts']:.1f} parts on "
        "average. colour: what stands out from the picture's edge; position: where objects\n"
        "usually are. p: of the difference to attention in the same scenes, by exchange within "
        "scenes."
    )


def records(found: xarray.Dataset) -> list[dict[str, Any]]:
    """One plain record per measure and finder."""
    from ditscope.analysis.segmentation import summary

    means, result = summary(found), []
    for measure in WORDS:
        for finder in found["finder"].values.tolist():
            if measure == "ceiling" and finder != "attention":
                continue  # it is that of the patches, whoever finds
            here = means.sel(measure=measure, finder=finder)
            numbers = {name: float(here[name]) for name in ("mean", "low", "high", "p")}
            if finder == "attention":
                numbers["p"] = math.nan
            result.append(
                {"measure": measure, "finder": finder}
                | {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            )
    return result


def rows(measures: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Records as the cells of a table."""
    return [
        (
            WORDS[row["measure"]],
            "" if row["measure"] == "ceiling" else row["finder"],
            f"{row['mean']:.3f}",
            "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}",
            "" if row["p"] is None else f"{row['p']:.4f}",
        )
        for row in measures
    ]
