"""`ditscope plot`: one figure of a run, to a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditscope.cli.console import print_json, results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ditscope.runs.reader import Run


class Kind(StrEnum):
    """What a figure shows."""

    depth = "depth"
    differences = "differences"
    head = "head"
    heads = "heads"
    kinds = "kinds"
    layers = "layers"
    overlay = "overlay"
    phases = "phases"
    pictures = "pictures"
    steps = "steps"
    timesteps = "timesteps"


PLACE = {"head", "query", "sample", "branch"}
TAKES: dict[Kind, set[str]] = {
    Kind.depth: {"metric", "layer", "step", "branch"},
    Kind.differences: {"other", "class_a", "class_b", "branch"},
    Kind.head: PLACE | {"layer", "step"},
    Kind.heads: {"metric", "step", "sample", "branch"},
    Kind.kinds: {"branch"},
    Kind.layers: PLACE | {"layer", "step"},
    Kind.overlay: PLACE | {"layer", "step"},
    Kind.phases: {"metric", "branch"},
    Kind.pictures: set(),
    Kind.steps: {"metric", "layer", "branch"},
    Kind.timesteps: PLACE | {"layer", "step"},
}
"""Options that each kind takes."""
SEVERAL = {
    Kind.depth: {"metric": "metrics", "layer": "layers"},
    Kind.layers: {"layer": "layers"},
    Kind.steps: {"metric": "metrics", "layer": "layers"},
    Kind.timesteps: {"step": "steps"},
}
"""Options that may be repeated, and what the function calls the list of them."""


def plot(
    kind: Annotated[Kind, typer.Argument(help="What to draw.")],
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .png, .svg or .pdf file.")],
    metric: Annotated[list[str] | None, typer.Option(help="A statistic.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="A layer.")] = None,
    head: Annotated[str | None, typer.Option(help="A head, or mean.")] = None,
    step: Annotated[list[int] | None, typer.Option(help="A step.")] = None,
    query: Annotated[tuple[int, int] | None, typer.Option(help="A patch: row, column.")] = None,
    sample: Annotated[int | None, typer.Option(help="A picture, from 0.")] = None,
    branch: Annotated[str | None, typer.Option(help="cond or uncond.")] = None,
    other: Annotated[
        Path | None, typer.Option(help="differences: the run to compare with.")
    ] = None,
    class_a: Annotated[str | None, typer.Option(help="differences: class in the run.")] = None,
    class_b: Annotated[str | None, typer.Option(help="differences: class in --other.")] = None,
    dpi: Annotated[int, typer.Option(min=20, max=1200, help="Dots per inch of a PNG.")] = 144,
    title: Annotated[str | None, typer.Option(help="In place of the usual title.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the file's name as JSON.")] = False,
) -> None:
    """Draw a figure of a run.

    depth, steps, phases: statistics over layers and steps. heads, kinds: a number, and the kind, of
    every head. head, layers, timesteps, overlay: where one patch looks. differences: two runs, or
    two classes of one. pictures: what was drawn. --layer, --step and --metric may be repeated
    where several are shown.
    """
    from ditscope.plot.theme import checked_target, save_figure
    from ditscope.runs.reader import open_run

    given = {
        "metric": metric,
        "layer": layer,
        "head": head,
        "step": step,
        "query": query,
        "sample": sample,
        "branch": branch,
        "other": other,
        "class_a": class_a,
        "class_b": class_b,
    }
    chosen = arguments(kind, {name: value for name, value in given.items() if value})
    if sample == 0 and "sample" in TAKES[kind]:
        chosen["sample"] = 0
    checked_target(out)
    file = save_figure(drawn(kind, open_run(run), title, chosen), out, dpi)
    if json:
        print_json({"file": str(file)})
    else:
        results().print(str(file))


def arguments(kind: Kind, given: dict[str, Any]) -> dict[str, Any]:
    """Options as arguments of the function that draws; BadRequest for one it does not take."""
    from ditscope.errors import BadRequest, listed

    chosen = {}
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if name not in TAKES[kind]:
            taken = listed(sorted("--" + each.replace("_", "-") for each in TAKES[kind]), 20)
            raise BadRequest(f"`{kind}` does not take {option}", expected=taken or "no such option")
        if name in SEVERAL.get(kind, {}):
            chosen[SEVERAL[kind][name]] = value
        elif isinstance(value, list):
            if len(value) > 1:
                raise BadRequest(f"`{kind}` takes one {option}", expected="it once")
            chosen[name] = value[0]
        elif name == "head" and value != "mean":
            try:
                chosen[name] = int(value)
            except ValueError:
                raise BadRequest(f"{value!r}", field="head", expected="a number or mean") from None
        else:
            chosen[name] = value
    return chosen


def drawn(kind: Kind, run: Run, title: str | None, chosen: dict[str, Any]) -> Figure:
    """The figure."""
    from ditscope import plot as figures
    from ditscope.runs.reader import open_run

    if kind is Kind.pictures:
        names = [label.name for label in run.manifest.labels]
        return figures.image_grid(run.images, names, title=title)
    if kind is Kind.differences:
        from ditscope.analysis.compare import compare

        other = chosen.pop("other", None)
        names = chosen.get("class_a") or "A", chosen.get("class_b") or "B"
        found = compare(run, open_run(other) if other else run, **chosen)
        return figures.differences(found, names=names, title=title)
    function = figures.head_map if kind is Kind.head else getattr(figures, kind)
    return function(run, title=title, **chosen)
