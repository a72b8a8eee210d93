"""`ditscope eval`: how good pictures are, as numbers with the choices behind them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import messages, print_json, progress, results
from ditscope.cli.evaluation_tables import show
from ditscope.errors import BadRequest, ResourceError

if TYPE_CHECKING:
    from ditscope.evaluation.evaluate import Report

EVALUATIONS = Path("evaluations")


def eval_(
    samples: Annotated[
        str, typer.Argument(help="A model to draw with, a run, a folder of pictures, or scenes.")
    ] = "emoji",
    reference: Annotated[
        str, typer.Option(help="emoji, a folder, a run, or statistics (.safetensors, .npz).")
    ] = "emoji",
    reference_samples: Annotated[
        int | None, typer.Option(min=2, help="Pictures of the reference. [default: all]")
    ] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Keep the reference's statistics in this .safetensors file.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="emoji, a .pt or .onnx file, module:name or file.py:name.")
    ] = "emoji",
    feature_pixels: Annotated[
        str | None, typer.Option(help="What it takes: uint8 (0-255), unit (0-1), signed (-1-1).")
    ] = None,
    feature_size: Annotated[
        int | None, typer.Option(help="Side in pixels that pictures are resized to for it.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Pictures. [default: all; of a model 10 a class]")
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, help="k of precision and recall.")] = 3,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="What is drawn, instead of all; repeatable.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Solver steps, or a DDPM respacing such as 10,15,20.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddpm, ddim, dpm++, unipc; euler, heun for a flow.")
    ] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Every sample's noise follows from it.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples in the network at once. [default: 8]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="Of a model. [default: the fastest here]")
    ] = None,
    segmentation: Annotated[
        bool, typer.Option("--segmentation", help="Only: objects from attention, against masks.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON file. [default: a new one under evaluations/]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Measure pictures against data: class accuracy, Frechet distance, precision and recall.

    With --segmentation: how well a model's attention tells objects from background, on scenes with
    true masks. The numbers are written to a JSON file beside every choice they depend on.
    """
    if segmentation:
        _refuse_drawing(steps, sampler, cfg_scale, seed, batch_size, class_, save_reference)
        _segmentation(samples, num_samples, device, dtype, out, json)
        return
    from ditscope.evaluation.evaluate import evaluate
    from ditscope.evaluation.extractors import extractor
    from ditscope.evaluation.reference import check_statistics_file, reference_of
    from ditscope.evaluation.reference import save_reference as save
    from ditscope.evaluation.sources import source_of
    from ditscope.pipeline import checked_device, checked_dtype

    drawing = {
        "steps": int(steps) if steps and steps.isdecimal() else steps,
        "sampler": sampler,
        "cfg_scale": cfg_scale,
        "seed": seed,
        "batch_size": batch_size,
    }
    if save_reference is not None:
        check_statistics_file(save_reference)
    with evaluation_file(out, samples) as file:
        place = checked_device(device)
        extract = extractor(features, pixels=feature_pixels, size=feature_size, device=place)
        source = source_of(
            samples,
            num_samples,
            classes=class_ or (),
            settings={name: value for name, value in drawing.items() if value is not None},
            device=device,
            dtype=checked_dtype(dtype),
        )
        with bars() as report:
            given = reference_of(
                reference,
                extract,
                count=reference_samples,
                class_names=source.class_names,
                report=report,
            )
            if save_reference is not None:
                save(save_reference, given)
            found = evaluate(
                source, features=extract, reference=given, neighbours=neighbours, report=report
            )
        found.save(file)
    if json:
        print_json({"file": str(file), **found.to_dict()})
        return
    show(found)
    results().print(f"file       {file}")


def _refuse_drawing(*options: object) -> None:
    """BadRequest if an option is given that --segmentation has no use for."""
    if any(each is not None and each != [] for each in options):
        raise BadRequest(
            "nothing is drawn for it",
            field="segmentation",
            expected="with it only --num-samples, --device, --dtype, --out and --json",
        )


def _segmentation(
    model: str, scenes: int | None, device: str, dtype: str | None, out: Path | None, json: bool
) -> None:
    """Objects from attention against true masks: printed, and written to a file."""
    from ditscope.cli.segmentation import measured, show_segmentation
    from ditscope.pipeline import checked_dtype, load

    with evaluation_file(out, f"{model}-segmentation") as file:
        pipe = load(model, device=device, dtype=checked_dtype(dtype))
        with bars() as report:
            tree = measured(pipe, scenes, report)
        file.write_text(dumps(tree, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if json:
        print_json({"file": str(file), **tree})
        return
    show_segmentation(tree)
    results().print(f"file       {file}")


@contextmanager
def evaluation_file(out: Path | None, samples: str) -> Iterator[Path]:
    """`out`, or a new file under `evaluations/` that no other command can choose.

    What cannot be written is known before anything is computed. Raises BadRequest, ResourceError.
    """
    if out is not None:
        if out.exists():
            raise BadRequest("already exists", file=out, field="out", fix="choose another name")
        if not os.access(out.resolve().parent, os.W_OK | os.X_OK):
            raise ResourceError("its parent folder is missing or read-only", file=out)
        yield out
        return
    EVALUATIONS.mkdir(exist_ok=True)
    stem = "".join(c if c.isalnum() and c.isascii() else "-" for c in Path(samples).name)[:40]
    names = (EVALUATIONS / f"{stem or 'samples'}-{number}.json" for number in itertools.count(1))
    file = next(name for name in names if _is_made(name))
    try:
        yield file
    except BaseException:  # a signal too
        file.unlink(missing_ok=True)
        raise


def _is_made(file: Path) -> bool:
    """Make it, empty; False if there is one of that name, made this moment perhaps."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@contextmanager
def bars() -> Iterator[Report]:
    """A progress bar for everything that is looked at."""
    with progress() as bar:
        tasks = {}

        def report(stage: str, done: float, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
                if not messages().is_terminal:
                    messages().print(f"{stage}: {total} pictures")
            bar.update(tasks[stage], completed=done)

        yield report
