"""`ditscope train`: from a recipe to weights, resumable at any time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import messages, print_json, progress, results
from ditscope.errors import BadRequest

if TYPE_CHECKING:
    from ditscope.train.loop import Progress


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML file with the fields of a training.")],
    out: Annotated[Path, typer.Option(help="Folder of the training; given again, it goes on.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    decay_steps: Annotated[
        int | None, typer.Option(min=0, help="Instead of the recipe's: last steps, rate falling.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Then write a pipeline folder with the averaged weights.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --export.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the last report as JSON.")] = False,
) -> None:
    """Train a model, or go on where its newest whole checkpoint stands."""
    from ditscope.train.export import check_export
    from ditscope.train.export import export as write_pipeline
    from ditscope.train.loop import Training
    from ditscope.train.recipe import read_recipe

    if not out.name:
        raise BadRequest("found an empty name", field="out", expected="the name of a folder")
    changes = {"steps": steps, "decay_steps": decay_steps}
    config = read_recipe(
        recipe, {key: value for key, value in changes.items() if value is not None}
    )
    if export is not None:
        check_export(config, out, export, overwrite)
    last: list[Progress] = []
    with Training(config, out) as training:
        for problem in training.damaged:
            messages().print(f"warning: skipped {problem}")
        if training.step:
            messages().print(f"going on at step {training.step}")
        with progress() as bar:
            task = bar.add_task("training", total=config.steps, completed=training.step)

            def report(line: Progress) -> None:
                last[:] = [line]
                bar.update(task, completed=line.step, description=described(line))

            training.run(report, tell=lambda text: messages().print(f"warning: {text}"))
    if export is not None:
        write_pipeline(out, export, overwrite=overwrite)
    if json:
        print_json(last[0].__dict__ if last else {"step": training.step})
        return
    results().print(f"training  {out}  (step {training.step}, {training.pictures:,} pictures)")
    if export is not None:
        results().print(f"pipeline  {export}\nnext      ditscope sample --model {export}")


def described(line: Progress) -> str:
    """One report in a few words."""
    loss = "no loss" if line.loss is None else f"loss {line.loss:.4f}"
    return f"{line.stage} {loss}, {line.pictures_per_second:.0f} pictures/s"
