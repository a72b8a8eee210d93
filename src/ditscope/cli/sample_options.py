"""What `ditscope sample` and `ditscope sample-ddp` are told, defined once."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

from ditscope.cli.console import messages
from ditscope.cli.edits import typed_edits
from ditscope.errors import BadRequest

if TYPE_CHECKING:
    from ditscope.core.keep import Keep
    from ditscope.pipeline import Pipeline
    from ditscope.sampling.job import Job

RUNS = Path("runs")


@dataclass(frozen=True)
class SampleOptions:
    """Options of a sampling: plain data, so that other processes can be handed them."""

    model: Annotated[str, typer.Option(help="A bundled name, a folder or a weight file.")] = "emoji"
    weights: Annotated[Path | None, typer.Option(help="Other weights for the same network.")] = None
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="Class name or index; repeatable.")
    ] = None
    num_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures; the classes take turns. [default: one a --class]"),
    ] = None
    steps: Annotated[
        str | None, typer.Option(help="Solver steps, or a DDPM respacing such as 10,15,20.")
    ] = None
    sampler: Annotated[
        str | None, typer.Option(help="ddpm, ddim, dpm++, unipc; euler, heun for a flow.")
    ] = None
    cfg_scale: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None
    cfg_channels: Annotated[
        int | None, typer.Option(help="Guide only the first channels; 3 as in the published code.")
    ] = None
    cfg_interval: Annotated[
        tuple[float, float] | None, typer.Option(help="Noise levels, 0 to 1, with guidance.")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(help="Divide attention scores; above 1 is flatter.")
    ] = None
    temperature_layers: Annotated[
        str | None, typer.Option(help="In these layers only, such as 20-27 or 0,3.")
    ] = None
    temperature_heads: Annotated[str | None, typer.Option(help="In these heads only.")] = None
    temperature_steps: Annotated[
        str | None, typer.Option(help="At these evaluations of the network only.")
    ] = None
    ablate_heads: Annotated[
        str | None, typer.Option(help="LAYER:HEAD,... whose output is zero, such as 5:2,20-27:0-3.")
    ] = None
    ablate_steps: Annotated[
        str | None, typer.Option(help="Ablate at these evaluations of the network only.")
    ] = None
    seed: Annotated[int, typer.Option(help="Every sample's noise follows from it.")] = 0
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples in the network at once; the last bits depend on it.")
    ] = 8
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: a new one under runs/]")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in --out.")] = False
    attention_debug: Annotated[
        bool, typer.Option("--attention-debug", help="Record the attention of every head.")
    ] = False
    metrics: Annotated[
        str | None,
        typer.Option(help="Record these metrics too, as in mean_distance,sink_mass."),
    ] = None
    detail: Annotated[
        str, typer.Option(help="heads; or tokens, to record metrics of each token too.")
    ] = "heads"
    record_layers: Annotated[
        str | None, typer.Option(help="Measure these layers only: 0,20-27, or globs of names.")
    ] = None
    record_heads: Annotated[
        str | None, typer.Option(help="Measure these heads of each layer only.")
    ] = None
    record_steps: Annotated[
        str | None, typer.Option(help="Measure at these evaluations of the network only.")
    ] = None
    record_branches: Annotated[
        str | None, typer.Option(help="Measure this half of guidance only: cond or uncond.")
    ] = None
    record_queries: Annotated[
        int | None,
        typer.Option(min=2, help="Estimate from so many queries of a head, with standard errors."),
    ] = None
    qk_steps: Annotated[
        int, typer.Option(min=0, help="Store Q and K of this many steps, evenly spread.")
    ] = 0
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. [default: the fastest here]")
    ] = None
    num_heads: Annotated[
        int | None, typer.Option(help="Heads, for weights of an unpublished size.")
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False

    def check_out(self) -> None:
        """Raise ResourceError or BadRequest now, before anything is loaded, for a bad --out."""
        from ditscope.runs.target import check_target

        if self.out is None:
            return
        if not self.out.name:
            raise BadRequest(
                "found an empty name, or the folder you are in",
                field="out",
                expected="the name of a new folder",
            )
        check_target(self.out, overwrite=self.overwrite)

    def pipeline(self, device: str) -> Pipeline:
        """The pipeline that draws; what is noted of it goes to stderr."""
        from ditscope.pipeline import checked_dtype, load

        return load(
            self.model,
            weights=self.weights,
            num_heads=self.num_heads,
            device=device,
            dtype=checked_dtype(self.dtype),
        )

    @property
    def only(self) -> Keep:
        """What is measured. Raises BadRequest."""
        from ditscope.cli.keep import typed_keep

        return typed_keep(
            self.record_layers,
            self.record_heads,
            self.record_steps,
            self.record_branches,
            self.record_queries,
        )

    def job(self, pipe: Pipeline) -> Job:
        """What will be drawn. Raises BadRequest for any choice that does not fit the pipeline."""
        from ditscope.sampling.job import make_job

        only = self.only
        metrics = chosen_metrics(
            self.metrics,
            self.detail,
            default=self.attention_debug or not only.everything,
            sampled=only.queries is not None,
        )
        settings: dict[str, object] = {
            "steps": int(self.steps) if self.steps and self.steps.isdecimal() else self.steps,
            "sampler": self.sampler,
            "cfg_scale": self.cfg_scale,
            "cfg_channels": self.cfg_channels,
            "cfg_interval": self.cfg_interval,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "metrics": metrics,
            "only": only,
            "detail": self.detail,
            "edits": typed_edits(
                self.temperature,
                self.temperature_layers,
                self.temperature_heads,
                self.temperature_steps,
                self.ablate_heads,
                self.ablate_steps,
            ),
        }
        labels = chosen_labels(pipe, self.class_ or [], self.num_samples)
        return make_job(pipe, labels, settings).keeping_qk(self.qk_steps)


def note(pipe: Pipeline) -> None:
    """Say on stderr what there is to say of a pipeline."""
    for each in (*pipe.notes, *pipe.codec.notes):
        messages().print(f"note: {each}")


def chosen_labels(pipe: Pipeline, classes: list[str], count: int | None) -> list[int]:
    """The classes of the pictures: those named, in turn, or a spread over all there are.

    Raises BadRequest for an unknown class, or more classes than pictures.
    """
    from ditscope.core.labels import find_class

    named = [find_class(name, pipe.labels) for name in classes]
    count = count or len(named) or 1
    if count < len(named):
        raise BadRequest(
            f"{count} for {len(named)} classes",
            field="--num-samples",
            expected="one or more of each",
        )
    if not named:
        total = len(pipe.labels)
        named = [index * total // min(count, total) for index in range(min(count, total))]
    return [named[index % len(named)] for index in range(count)]


def chosen_metrics(
    names: str | None, detail: str, *, default: bool, sampled: bool = False
) -> tuple[str, ...]:
    """The default metrics and those of a list with commas; with neither asked for, none.

    The default ones are always there because the pictures that are drawn of a run need them; with
    `sampled` those of them that a sample of queries can tell.
    """
    from ditscope.attention.metrics.plan import plan_of
    from ditscope.attention.metrics.sampling import sampled_defaults
    from ditscope.core.statistics import DEFAULT_METRICS

    more = [name.strip() for name in (names or "").split(",") if name.strip()]
    if not (more or default or detail == "tokens"):
        return plan_of((), detail).names
    always = sampled_defaults() if sampled else DEFAULT_METRICS
    return plan_of(tuple(dict.fromkeys((*always, *more))), detail).names


@contextlib.contextmanager
def run_folder(out: Path | None, job: Job) -> Iterator[Path]:
    """`out`, or a new folder under `runs/` that no other command can choose.

    The folder is made here, which tells it from all others; if nothing is put in it, it goes again.
    """
    if out is not None:
        yield out
        return
    drawn = {job.pipe.labels[label] for label in job.classes}
    with new_folder(drawn.pop() if len(drawn) == 1 else job.pipe.name) as folder:
        yield folder


@contextlib.contextmanager
def new_folder(words: str) -> Iterator[Path]:
    """A new folder under `runs/`, named after `words`; if nothing is put in it, it goes again."""
    from ditscope.runs.target import parts_folder

    stem = "".join(c if c.isalnum() and c.isascii() else "-" for c in words.split(",")[0])[:40]
    RUNS.mkdir(exist_ok=True)
    names = (RUNS / f"{stem}-{number}" for number in itertools.count(1))
    folder = next(name for name in names if not parts_folder(name).exists() and _is_made(name))
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if it is empty


def _is_made(folder: Path) -> bool:
    """Make it; False if there is one of that name, made this moment by another command perhaps."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def with_sample_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command(options, ...)` with one parameter for each field of `SampleOptions`, for typer."""
    hints = get_type_hints(SampleOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=hints[each.name],
        )
        for each in fields(SampleOptions)
    ]
    own_hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own_hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "options"
    ]

    def expanded(**given: object) -> None:
        options = SampleOptions(**{each.name: given.pop(each.name) for each in shared})  # type: ignore[arg-type]
        command(options, **given)

    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    expanded.__annotations__ = {each.name: each.annotation for each in [*shared, *own]}
    expanded.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    return expanded
