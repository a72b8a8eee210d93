"""`ditscope train`: from pictures to weights, resumable at any time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import messages, print_json, progress, results
from ditscope.errors import BadRequest, DitscopeError

if TYPE_CHECKING:
    from ditscope.distributed.group import Group
    from ditscope.train.config import TrainConfig
    from ditscope.train.loop import Progress

SECONDS_TO_SAVE = 600
"""How long processes that were asked to end may take for the step under way and a checkpoint."""


def train(
    out: Annotated[Path, typer.Option(help="Folder of the training; given again, it goes on.")],
    recipe: Annotated[
        Path | None, typer.Argument(help="TOML file with the fields of a training.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="emoji|FOLDER|hf:NAME", help="Class folders, shards, latents; or the Hub."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="VARIANT|TOML", help="E.g. DiT-S/4, or its fields.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="MODEL|TRAINING", help="Begin with these weights; classes may come."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="article or dit-paper; without a recipe: article.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="ddpm, flow or flow-x.")] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="SIDE|HxW", help="Pixels. Without a recipe: 64.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Attention heads; auto: by the data.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the whole training.")] = None,
    decay_steps: Annotated[
        int | None, typer.Option(help="Last steps, in which a linear schedule falls.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Compute a batch in this many parts: less memory.")
    ] = None,
    grad_checkpoint: Annotated[
        bool, typer.Option("--grad-checkpoint", help="Compute blocks twice: less memory.")
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="torch.compile the blocks: slow to start.")
    ] = False,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="bf16 or fp32. [default: the faster here]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of pictures, noise and first weights.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write the log as curves for TensorBoard.")
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Or cuda:1; auto: a GPU if there is one.")
    ] = "auto",
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that share each batch. [default: 1]"),
    ] = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Spread weights over the processes (FSDP2).")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, e.g. model.depth=6."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Then write a pipeline folder with the averaged weights.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --export.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the last report as JSON.")] = False,
) -> None:
    """Train a model, or go on where its newest whole checkpoint stands.

    With --processes, or under torchrun, every process computes its rows of each batch, each on its
    own GPU if there are such. Number and device may be others when the training goes on.
    """
    from ditscope.distributed.group import is_started
    from ditscope.train.export import check_export
    from ditscope.train.placing import one_device
    from ditscope.train.request import Request, resolve

    if not out.name:
        raise BadRequest("found an empty name", field="out", expected="the name of a folder")
    single = {
        "steps": steps,
        "decay_steps": decay_steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "grad_checkpoint": grad_checkpoint or None,
        "compile": compile_ or None,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
        "tensorboard": tensorboard or None,
    }
    request = Request(
        recipe=recipe,
        preset=preset,
        data=data,
        model=model,
        image_size=image_size,
        heads=heads,
        init=init,
        objective=objective,
        single={name: value for name, value in single.items() if value is not None},
        settings=set_ or (),
        folder=out,
        device=device,
    )
    config, notes = resolve(request)
    if export is not None:
        check_export(config, out, export, overwrite)
    if is_started():
        done = _as_one_of_many(config, out, notes, shard, device, processes)
    elif processes is not None and processes > 1:
        done = _with_others(config, out, notes, shard, device, processes)
    else:
        done = train_share(None, config, out, notes, shard, str(one_device(device)))
    if done is not None:
        _finish(done, out, export, overwrite=overwrite, as_json=json)


def train_share(
    group: Group | None,
    config: TrainConfig,
    out: Path,
    notes: list[str],
    shard: bool,
    device: str,
) -> dict[str, object]:
    """What each process does; its last report, and how far the training is.

    Of several processes each has its own of that kind of `device`.
    """
    from ditscope.train.loop import Training

    first = group is None or group.rank == 0
    if first:
        for note in notes:
            messages().print(note)
    last: list[Progress] = []
    if group is not None and device != "cpu":
        device = f"{device}:{group.local_rank}"
    with Training(config, out, group, sharded=shard, device=device) as training:
        if not first:
            training.run(lambda line: None, lambda text: None)
            return {}
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
    ended = {
        "step": training.step,
        "pictures": training.pictures,
        "left_out": training.left_out,
    }
    return {**(last[0].__dict__ if last else {}), **ended}


def _with_others(
    config: TrainConfig, out: Path, notes: list[str], shard: bool, device: str, processes: int
) -> dict[str, object]:
    """Start the processes, and wait for them."""
    from ditscope.distributed.launch import launch
    from ditscope.train.batches import rows_of
    from ditscope.train.placing import shared_kind

    rows_of(config, 0, processes)  # fails before there are any
    kind = shared_kind(device, processes)
    return launch(
        train_share,
        (config, out, notes, shard, kind),
        processes=processes,
        seconds_to_clean_up=SECONDS_TO_SAVE,
        sums_on=kind,
    )


def _as_one_of_many(
    config: TrainConfig, out: Path, notes: list[str], shard: bool, device: str, asked: int | None
) -> dict[str, object] | None:
    """The share of a process that torchrun started; only the first has something to tell."""
    from ditscope.distributed.group import joined, processes_here
    from ditscope.distributed.launch import report_error
    from ditscope.train.placing import shared_kind

    kind = shared_kind(device, processes_here())
    with joined(sums_on=kind) as group:
        if asked not in (None, group.size):
            raise BadRequest(
                f"found {asked}", field="processes", expected=f"{group.size}, as torchrun started"
            )
        try:
            done = train_share(group, config, out, notes, shard, kind)
        except DitscopeError as error:
            report_error(error)
            raise
        return done if group.rank == 0 else None


def _finish(
    done: dict[str, object], out: Path, export: Path | None, *, overwrite: bool, as_json: bool
) -> None:
    """Write the pipeline, and say what there is."""
    from ditscope.train.export import export as write_pipeline

    if export is not None:
        write_pipeline(out, export, overwrite=overwrite)
    if as_json:
        print_json(done)
        return
    left = f", {done['left_out']} files left out" if done["left_out"] else ""
    results().print(f"training  {out}  (step {done['step']}, {done['pictures']:,} pictures{left})")
    if export is not None:
        results().print(f"pipeline  {export}\nnext      ditscope sample --model {export}")


def described(line: Progress) -> str:
    """One report in a few words."""
    loss = "no loss" if line.loss is None else f"loss {line.loss:.4f}"
    speed = f"{line.pictures_per_second:.0f} pictures/s"
    memory = f"{line.peak_memory_gib:.1f} GiB"
    if line.peak_gpu_gib is not None:
        memory += f", GPU {line.peak_gpu_gib:.1f} GiB"
    return f"{line.stage} {loss}, {speed}, {memory}"
