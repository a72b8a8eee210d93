"""`ditscope sample`: draw pictures, and record how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import messages, print_json, progress, results

if TYPE_CHECKING:
    from ditscope.pipeline import Pipeline
    from ditscope.runs.reader import Run

RUNS = Path("runs")
FIGURES = "figures"


def sample(
    model: Annotated[
        str, typer.Option(help="A bundled name, a folder or a weight file.")
    ] = "emoji",
    weights: Annotated[
        Path | None, typer.Option(help="Other weights for the same network.")
    ] = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="Class name or index; repeatable.")
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures; the classes take turns. [default: one each]"),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Solver steps, or a DDPM respacing such as 10,15,20.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddpm, ddim, dpm++, unipc; euler, heun for a flow.")
    ] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    cfg_channels: Annotated[
        int | None, typer.Option(help="Guide only the first channels; 3 as in the published code.")
    ] = None,
    cfg_interval: Annotated[
        tuple[float, float] | None, typer.Option(help="Noise levels, 0 to 1, with guidance.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Every sample's noise follows from it.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Samples in the network at once.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: a new one under runs/]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in --out.")] = False,
    attention_debug: Annotated[
        bool, typer.Option("--attention-debug", help="Record the attention of every head.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(help="Record these metrics too, as in mean_distance,sink_mass."),
    ] = None,
    detail: Annotated[
        str, typer.Option(help="heads; or tokens, to record metrics of each token too.")
    ] = "heads",
    qk_steps: Annotated[
        int, typer.Option(min=0, help="Store Q and K of this many steps, evenly spread.")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. [default: the fastest here]")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="Heads, for weights of an unpublished size.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Draw pictures. The run is kept: latents, pictures and, if asked for, attention."""
    from ditscope.pipeline import checked_dtype, load

    asked = chosen_metrics(metrics, detail, default=attention_debug)
    if out is not None:
        check_out(out, overwrite)
    pipe = load(
        model, weights=weights, num_heads=num_heads, device=device, dtype=checked_dtype(dtype)
    )
    for note in (*pipe.notes, *pipe.codec.notes):
        messages().print(f"note: {note}")
    labels = chosen_labels(pipe, class_ or [], num_samples)
    settings: dict[str, object] = {
        "steps": int(steps) if steps is not None and steps.isdecimal() else steps,
        "sampler": sampler,
        "cfg_scale": cfg_scale,
        "cfg_channels": cfg_channels,
        "cfg_interval": cfg_interval,
        "seed": seed,
        "batch_size": batch_size,
        "metrics": asked,
        "detail": detail,
    }
    run, pictures = record(
        pipe, labels, out or new_run(pipe, labels), overwrite, qk_steps, settings
    )
    show(run, pictures, as_json=json)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise ResourceError now, before anything is loaded, if the run could not be written."""
    from ditscope.runs.target import check_target

    check_target(out, overwrite=overwrite)


def chosen_metrics(names: str | None, detail: str, *, default: bool) -> tuple[str, ...]:
    """The default metrics and those of a list with commas; with neither asked for, none.

    The default ones are always there because the pictures that are drawn of a run need them.
    """
    from ditscope.attention.metrics.plan import plan_of
    from ditscope.core.statistics import DEFAULT_METRICS

    more = [name.strip() for name in (names or "").split(",") if name.strip()]
    if not (more or default):
        return plan_of((), detail).names
    return plan_of(tuple(dict.fromkeys((*DEFAULT_METRICS, *more))), detail).names


def chosen_labels(pipe: Pipeline, classes: list[str], count: int | None) -> list[int]:
    """The classes of the pictures: those named, in turn, or a spread over all there are."""
    from ditscope.core.labels import find_class

    named = [find_class(name, pipe.labels) for name in classes]
    count = count or len(named) or 1
    if not named:
        total = len(pipe.labels)
        named = [index * total // min(count, total) for index in range(min(count, total))]
    return [named[index % len(named)] for index in range(count)]


def new_run(pipe: Pipeline, labels: list[int]) -> Path:
    """A folder under `runs/` that does not exist yet, named after what is drawn."""
    RUNS.mkdir(exist_ok=True)
    words = pipe.labels[labels[0]] if len(set(labels)) == 1 else pipe.name
    stem = "".join(c if c.isalnum() and c.isascii() else "-" for c in words.split(",")[0])[:40]
    number = 1
    while (RUNS / f"{stem}-{number}").exists():
        number += 1
    return RUNS / f"{stem}-{number}"


def record(
    pipe: Pipeline,
    labels: list[int],
    out: Path,
    overwrite: bool,
    qk_steps: int,
    settings: dict[str, object],
) -> tuple[Run, list[tuple[Path, str]]]:
    """Sample into `out` behind a progress bar, then draw what the run can show."""
    from ditscope.errors import BadRequest
    from ditscope.plot.gallery import save_gallery
    from ditscope.runs.reader import Run
    from ditscope.sampling.draw import sample
    from ditscope.sampling.job import make_job

    evaluations = len(make_job(pipe, labels, settings).plan.evaluations)
    if qk_steps > evaluations:
        raise BadRequest(f"found {qk_steps}", field="qk-steps", expected=f"at most {evaluations}")
    kept = {round(i * (evaluations - 1) / max(1, qk_steps - 1)) for i in range(qk_steps)}
    settings = {**settings, "qk_steps": tuple(sorted(kept))}
    with progress() as bar:
        task = bar.add_task("drawing", total=evaluations)
        run = sample(
            pipe,
            labels,
            record=out,
            overwrite=overwrite,
            report=lambda done, _: bar.update(task, completed=done),
            **settings,
        )
        assert isinstance(run, Run)
        bar.update(task, description="plotting")
        figures = run.path / FIGURES
        figures.mkdir(exist_ok=True)
        pictures = save_gallery(run, figures)
    return run, pictures


def show(run: Run, pictures: list[tuple[Path, str]], *, as_json: bool) -> None:
    """Say what was made, where it is, and what to type next."""
    if as_json:
        print_json({"run": str(run.path), "pictures": [str(path) for path, _ in pictures]})
        return
    console = results()
    console.print(f"run       {run.path}")
    for path, meaning in pictures:
        console.print(f"{path.stem:<9} {path}  ({meaning})")
    console.print(f"next      ditscope info {run.path}")
