"""`ditscope compare RUN_A RUN_B --class-a NAME --others`: one class against all others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy

from ditscope.cli.console import print_json, print_table, results

COLUMNS = ("what", "noise", "layer", "head", "class", "others", "spread", "z", "below", "p")
NUMBERS = ("mean", "others_mean", "others_spread", "z", "below", "p", "p_adjusted")


def compare_others(
    run_a: Path,
    run_b: Path,
    label: str | None,
    more: object,
    branch: str,
    top: int,
    json: bool,
) -> None:
    """Print where the class lies farthest out among the other classes of `run_b`."""
    from ditscope.analysis.class_reference import against_others
    from ditscope.analysis.compare import SIGNIFICANT
    from ditscope.errors import BadRequest
    from ditscope.runs.reader import open_run

    if label is None or more:
        raise BadRequest(
            "one class is compared with all others, at all steps",
            field="others",
            expected="--class-a NAME, and neither --class-b nor steps",
        )
    found = against_others(
        open_run(run_a),
        label,
        reference=open_run(run_b),
        branch=branch,  # type: ignore[arg-type]
    )
    places = found.stack(place=("metric", "noise", "layer", "head"), create_index=False)
    places = places.dropna("place", subset=["z"])
    order = numpy.argsort(-abs(places["z"].values), kind="stable")[:top]
    rows = [_record(places.isel(place=i)) for i in order.tolist()]
    beyond = int((found["p_adjusted"] <= SIGNIFICANT).sum())
    summary = {
        "class": found.attrs["class_name"],
        "others": found.attrs["others"],
        "comparisons": int(found["p"].notnull().sum()),
        "beyond_chance": beyond,
    }
    if json:
        print_json({"run_a": str(run_a), "run_b": str(run_b), **summary, "farthest_out": rows})
        return
    print_table(COLUMNS, [_cells(row) for row in rows])
    results().print(
        f"\n{summary['class']} against {len(summary['others'])} other classes: {beyond} of "
        f"{summary['comparisons']} numbers are beyond chance (false discovery rate 5 %).\n"
        "Numbers in units of even attention; z: distance in standard deviations of the means of "
        "classes; below: share of classes that lie below."
    )


def _record(here: Any) -> dict[str, Any]:
    row = {name: here[name].item() for name in ("metric", "noise", "layer", "head")}
    for name in NUMBERS:
        value = float(here[name])
        row[name] = value if math.isfinite(value) else None
    return row


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["metric"],
        f"{row['noise']:.2f}",
        str(row["layer"]),
        str(row["head"]),
        f"{row['mean']:.3f}",
        f"{row['others_mean']:.3f}",
        f"{row['others_spread']:.3f}",
        f"{row['z']:+.1f}",
        f"{100 * row['below']:.0f} %",
        f"{row['p_adjusted']:.3f}",
    )
