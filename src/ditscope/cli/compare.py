"""`ditscope compare`: what differs most between two runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditscope.cli.console import print_json, print_table, results

if TYPE_CHECKING:
    import xarray

COLUMNS = ("what", "noise", "layer", "head", "A", "B", "B - A", "95 % interval", "effect", "p")
NUMBERS = ("mean_a", "mean_b", "difference", "low", "high", "effect", "p", "p_adjusted")


def compare(
    run_a: Annotated[Path, typer.Argument(help="The run that is compared with.")],
    run_b: Annotated[Path, typer.Argument(help="The other; the same one for two of its classes.")],
    class_a: Annotated[str | None, typer.Option(help="Only this class of RUN_A.")] = None,
    class_b: Annotated[str | None, typer.Option(help="Only this class of RUN_B.")] = None,
    step_a: Annotated[
        list[int] | None, typer.Option(help="Only this step of RUN_A; repeatable.")
    ] = None,
    step_b: Annotated[
        list[int] | None, typer.Option(help="Of RUN_B. [default: those of RUN_A]")
    ] = None,
    others: Annotated[
        bool, typer.Option("--others", help="--class-a against the other classes of RUN_B.")
    ] = False,
    branch: Annotated[str, typer.Option(help="cond or uncond.")] = "cond",
    top: Annotated[int, typer.Option(min=1, help="How many differences to print.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """Compare the attention of two runs: classes, seeds, steps, checkpoints or models of any size.

    Numbers are in units of even attention; `p` is adjusted for the number of comparisons.
    """
    if others:
        from ditscope.cli.compare_others import compare_others

        compare_others(run_a, run_b, class_a, class_b or step_a or step_b, branch, top, json)
        return
    from ditscope.analysis.compare import SIGNIFICANT, most_changed
    from ditscope.analysis.compare import compare as compared
    from ditscope.runs.reader import open_run

    found = compared(
        open_run(run_a),
        open_run(run_b),
        class_a=class_a,
        class_b=class_b,
        steps_a=step_a or None,
        steps_b=step_b or None,
        branch=branch,  # type: ignore[arg-type]
    )
    rows = records(most_changed(found, top))
    beyond = int((found["p_adjusted"] <= SIGNIFICANT).sum())
    tests = int(found["difference"].notnull().sum())
    summary = {
        "samples": list(found.attrs["samples"]),
        "design": found.attrs["design"],
        "layers": found.attrs["layers"],
        "comparisons": tests,
        "beyond_chance": beyond,
    }
    if json:
        print_json({"run_a": str(run_a), "run_b": str(run_b), **summary, "most_changed": rows})
        return
    print_table(COLUMNS, [cells(row) for row in rows])
    results().print("\n".join(["", *closing(summary)]))


def records(places: xarray.Dataset) -> list[dict[str, Any]]:
    """One plain record per place; a number that is not known is None."""
    found = []
    for i in range(places.sizes["place"]):
        here = places.isel(place=i)
        row: dict[str, Any] = {
            name: here[name].item() for name in ("metric", "unit", "noise", "layer", "head")
        }
        for name in NUMBERS:
            value = float(here[name])
            row[name] = value if math.isfinite(value) else None
        found.append(row)
    return found


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A record as the cells of a table."""

    def number(name: str, digits: int = 3) -> str:
        return "-" if row[name] is None else f"{row[name]:.{digits}f}"

    layer = row["layer"]
    return (
        row["metric"],
        f"{row['noise']:.2f}",
        f"{layer:.2f}" if isinstance(layer, float) else str(layer),
        str(row["head"]),
        number("mean_a"),
        number("mean_b"),
        f"{row['difference']:+.3f}",
        "-" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}",
        number("effect", 2),
        number("p_adjusted"),
    )


def closing(summary: dict[str, Any]) -> list[str]:
    """What was compared, and what the numbers are worth."""
    first, second = summary["samples"]
    lines = [
        f"{summary['beyond_chance']} of {summary['comparisons']} differences are beyond chance "
        "(false discovery rate 5 %).",
        f"A: {first} samples, B: {second}, {summary['design']}. Layers by {summary['layers']}. "
        "Numbers in units of even attention; noise: middle of a range.",
    ]
    if min(first, second) < 2:
        lines.append("One sample says nothing of chance: record with --num-samples 8.")
    elif not summary["beyond_chance"] and min(first, second) < 8:
        lines.append("Few samples show large differences only: record with --num-samples 8.")
    return lines
