"""`ditscope sample-ddp`: as `ditscope sample`, with several processes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import messages, progress
from ditscope.cli.sample import gallery, show
from ditscope.cli.sample_options import SampleOptions, note, run_folder, with_sample_options
from ditscope.errors import BadRequest, DitscopeError, ResourceError, foreign

if TYPE_CHECKING:
    from ditscope.distributed.group import Group

PROCESSES_ON_CPU = 2
MOST_PROCESSES = 64
"""More than any machine has GPUs; each process loads the network."""


@with_sample_options
def sample_ddp(
    options: SampleOptions,
    num_gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_PROCESSES,
            help="Processes, one a GPU. [default: every GPU; 2 on the CPU]",
        ),
    ] = None,
    attention_log_dir: Annotated[
        Path | None, typer.Option(help="Short for --attention-debug --out with this folder.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda or cpu. [default: cuda where there is a GPU]")
    ] = None,
) -> None:
    """Draw pictures with several processes: the same ones, bit for bit, as `ditscope sample`.

    Starts the processes itself, or is one of those that torchrun has started. After an interruption
    the same command draws what is missing. Without --num-samples and --class every process draws
    one batch.
    """
    if attention_log_dir is not None:
        if options.out is not None:
            raise BadRequest("both name the folder of the run", field="out, attention-log-dir")
        options = replace(options, out=attention_log_dir, attention_debug=True)
    options.check_out()
    from ditscope.distributed.group import is_started
    from ditscope.distributed.launch import launch

    kind = device_kind(device)
    if is_started():
        path = _as_one_of_many(options, kind, num_gpus)
    else:
        processes = checked_processes(kind, num_gpus)
        path = launch(draw_share, (options, kind), processes=processes)
    if path is not None:
        from ditscope.runs.reader import open_run

        run = open_run(path)
        show(run, gallery(run), as_json=options.json)


def device_kind(device: str | None) -> str:
    """`cuda` or `cpu`: what was asked for, or what there is."""
    import torch

    if device not in (None, "cpu", "cuda"):
        raise BadRequest(
            f"found {foreign(device)}",
            field="device",
            expected="cpu or cuda: every process has its own",
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("there is no CUDA device", field="device", fix="`cpu` works")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def checked_processes(kind: str, asked: int | None) -> int:
    """How many processes to start. Raises ResourceError if there are not so many GPUs."""
    import torch

    if kind == "cpu":
        return asked or PROCESSES_ON_CPU
    there = torch.cuda.device_count()
    if asked is not None and asked > there:
        raise ResourceError(
            f"{asked} asked for, {there} here",
            field="num-gpus",
            fix=f"--num-gpus {there}, or --device cpu",
        )
    return asked or there


def draw_share(group: Group, options: SampleOptions, kind: str) -> str:
    """What each process does: load, draw its share; the path of the run that all have drawn."""
    from ditscope.distributed.draw import record_together

    pipe = options.pipeline(kind if kind == "cpu" else f"{kind}:{group.local_rank}")
    if options.num_samples is None and not options.class_:
        options = replace(options, num_samples=group.size * options.batch_size)
    job = options.job(pipe)
    if group.rank:
        place = group.from_first("")
        return str(record_together(job, Path(place), group, overwrite=options.overwrite))
    note(pipe)
    idle = group.size - len(job.batches)
    if idle > 0:
        messages().print(
            f"note: {idle} of {group.size} processes have nothing to draw: {len(job.classes)} "
            f"pictures are {len(job.batches)} batches of up to {options.batch_size}"
        )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(run_folder(options.out, job))
        if options.out is None:
            messages().print(f"note: if this is interrupted, --out {folder} goes on with it")
        bar = stack.enter_context(progress())
        task = bar.add_task(f"drawing, 1 of {group.size} processes", total=None)
        return str(
            record_together(
                job,
                Path(group.from_first(str(folder.absolute()))),
                group,
                overwrite=options.overwrite,
                report=lambda done, total: bar.update(task, completed=done, total=total),
            )
        )


def _as_one_of_many(options: SampleOptions, kind: str, asked: int | None) -> str | None:
    """The share of a process that torchrun started; the path of the run on the first of them."""
    from ditscope.distributed.group import joined
    from ditscope.distributed.launch import report_error

    with joined() as group:
        if asked not in (None, group.size):
            raise BadRequest(
                f"found {asked}", field="num-gpus", expected=f"{group.size}, as torchrun started"
            )
        checked_processes(kind, group.local_rank + 1)
        try:
            path = draw_share(group, options, kind)
        except DitscopeError as error:
            report_error(error)
            raise
        return path if group.rank == 0 else None
