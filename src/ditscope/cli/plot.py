"""`ditscope plot`: one figure of a run, to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ditscope.cli.console import print_json, results
from ditscope.cli.figures import Kind, arguments, drawn


def plot(
    kind: Annotated[Kind, typer.Argument(help="What to draw.")],
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="A .png, .svg or .pdf file; film: .gif, .webp, .mp4."),
    ],
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
    region: Annotated[
        list[str] | None, typer.Option(help="A box: NAME=TOP,LEFT,BOTTOM,RIGHT in patches.")
    ] = None,
    axis: Annotated[str | None, typer.Option(help="symmetry: vertical or horizontal.")] = None,
    at: Annotated[float | None, typer.Option(help="symmetry: column or row of the axis.")] = None,
    parts: Annotated[int | None, typer.Option(min=1, help="parts: how many; else found.")] = None,
    rule: Annotated[str | None, typer.Option(help="finding: the first of this rule.")] = None,
    rate: Annotated[float | None, typer.Option(help="film: pictures a second.")] = None,
    dpi: Annotated[int, typer.Option(min=20, max=1200, help="Dots per inch of a PNG.")] = 144,
    title: Annotated[str | None, typer.Option(help="In place of the usual title.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the file's name as JSON.")] = False,
) -> None:
    """Draw a figure of a run.

    depth, steps, phases: statistics over layers and steps. heads, kinds: a number, and the kind, of
    every head. head, layers, timesteps, overlay: where one patch looks; film: the same, moving.
    matrix: all patches at once. received: what patches receive. relevance: what a patch is made
    from. parts: objects found from attention. symmetry, continuity, flow: about regions.
    differences, map-differences: two runs, or two classes of one. finding: what diagnose found.
    pictures: what was drawn.
    --layer, --step, --metric and --region may be repeated where several are shown.
    """
    from ditscope.plot.moving import checked_film, film, save_film
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
        "region": region,
        "rule": rule,
        "axis": axis,
        "at": at,
        "parts": parts,
        "rate": rate,
    }
    chosen = arguments(kind, {name: value for name, value in given.items() if _given(value)})
    if kind is Kind.film:
        speed = chosen.pop("rate", 6.0)
        checked_film(out, speed)
        file = save_film(film(open_run(run), title=title, **chosen), out, rate=speed, dpi=dpi)
    else:
        checked_target(out)
        file = save_figure(drawn(kind, open_run(run), title, chosen), out, dpi)
    if json:
        print_json({"file": str(file)})
    else:
        results().print(str(file))


def _given(value: object) -> bool:
    """Whether an option was named: none at all and an empty list were not."""
    return value is not None and value != []
