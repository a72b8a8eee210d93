"""`ditscope export`: weights of a training, of any of its steps, as a pipeline folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ditscope.cli.console import messages, print_json, results


def export(
    training: Annotated[Path, typer.Argument(help="Folder of a training.")],
    destination: Annotated[Path, typer.Argument(help="The pipeline folder to write.")],
    step: Annotated[
        int | None, typer.Option(min=1, help="After how many steps. [default: the newest]")
    ] = None,
    ema_length: Annotated[
        float | None,
        typer.Option(
            metavar="0.01-0.28", help="Average over about this share of the steps, of snapshots."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DESTINATION if it is a pipeline folder.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write averaged weights of a training as a pipeline folder, also while it runs.

    Of a step whose checkpoint is not kept any more, or with --ema-length, the average is made of
    snapshots: train with --set snapshot_every=STEPS to keep them.
    """
    from ditscope.train.export import check_destination
    from ditscope.train.export import export as write_pipeline

    check_destination(training, destination, overwrite)
    with messages().status("averaging"):
        written = write_pipeline(
            training, destination, step=step, ema_length=ema_length, overwrite=overwrite
        )
    if json:
        facts = written.config.training
        told = {name: facts[name] for name in ("step", "pictures", "ema_length") if name in facts}
        print_json({"pipeline": str(destination), **told, "notes": list(written.notes)})
        return
    for note in written.notes:
        messages().print(f"note: {note}")
    results().print(f"pipeline  {destination}  (step {written.config.training['step']})")
    results().print(f"next      ditscope sample --model {destination}")
