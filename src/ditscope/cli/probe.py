"""`ditscope probe`: what a model attends to in real pictures."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import progress
from ditscope.cli.sample import gallery, show
from ditscope.cli.sample_options import chosen_metrics, new_folder, note
from ditscope.errors import BadRequest, foreign

if TYPE_CHECKING:
    from ditscope.data.scenes import Scene
    from ditscope.pipeline import Pipeline


def probe(
    pictures: Annotated[
        list[Path] | None, typer.Argument(help="JPEG, PNG, WebP or BMP files.")
    ] = None,
    scenes: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="In place of files: scenes, with their masks."),
    ] = None,
    scenes_seed: Annotated[
        int, typer.Option(min=0, help="Of the scenes; models are trained on those of 0.")
    ] = 2_000_003,
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", help="What a picture shows, in turn. [default: not said]"),
    ] = None,
    noise_levels: Annotated[
        str, typer.Option(help="Shares of noise, above 0 to 1, each one step of the run.")
    ] = "0.7,0.5,0.3,0.1",
    both_branches: Annotated[
        bool, typer.Option("--both-branches", help="Without the class, too.")
    ] = False,
    qk: Annotated[bool, typer.Option(help="Store Q and K of every level.")] = True,
    metrics: Annotated[
        str | None, typer.Option(help="Record these metrics too, as in mean_distance,sink_mass.")
    ] = None,
    detail: Annotated[
        str, typer.Option(help="heads; or tokens, to record metrics of each token too.")
    ] = "heads",
    seed: Annotated[int, typer.Option(min=0, help="Every picture's noise follows from it.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in the network at once.")] = 8,
    model: Annotated[
        str, typer.Option(help="A bundled name, a folder or a weight file.")
    ] = "emoji",
    weights: Annotated[
        Path | None, typer.Option(help="Other weights for the same network.")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="Heads, for weights of an unpublished size.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. [default: the fastest here]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: a new one under runs/]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Noise real pictures, look at each once per noise level, and record the attention as a run."""
    from ditscope.core.axes import BRANCHES
    from ditscope.pipeline import checked_dtype, load
    from ditscope.runs.target import check_target
    from ditscope.sampling.probe import probe as look

    _check_sources(pictures, scenes, class_)
    levels = _levels(noise_levels)
    if out is not None:
        check_target(out, overwrite=overwrite)
    pipe = load(
        model, weights=weights, num_heads=num_heads, device=device, dtype=checked_dtype(dtype)
    )
    note(pipe)
    shown = _scenes(pipe, scenes, scenes_seed) if scenes else list(pictures or ())
    with nullcontext(out) if out else new_folder("probe") as folder, progress() as bar:
        task = bar.add_task("looking", total=len(levels))
        run = look(
            pipe,
            shown,
            [class_[index % len(class_)] for index in range(len(shown))] if class_ else None,
            noise_levels=levels,
            record=folder,
            branches=BRANCHES if both_branches else ("cond",),
            overwrite=overwrite,
            report=lambda done, _: bar.update(task, completed=done),
            seed=seed,
            batch_size=batch_size,
            metrics=chosen_metrics(metrics, detail, default=True),
            detail=detail,
            qk_steps=tuple(range(len(levels))) if qk else (),
        )
    show(run, gallery(run), as_json=json)


def _check_sources(
    pictures: list[Path] | None, scenes: int | None, classes: list[str] | None
) -> None:
    if bool(pictures) == bool(scenes):
        raise BadRequest(
            "found both files and --scenes" if scenes else "found no picture",
            field="pictures",
            expected="files, or --scenes and a number",
        )
    if scenes and classes:
        raise BadRequest("scenes bring their classes", field="--class", expected="files")


def _levels(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BadRequest(
            f"found {foreign(text)!r}", field="noise-levels", expected="numbers, as in 0.5,0.3,0.1"
        ) from None


def _scenes(pipe: Pipeline, count: int, seed: int) -> list[Scene]:
    """The first `count` scenes of a class that the model knows."""
    from ditscope.data.scenes import EmojiScenes

    _, height, width = pipe.latent_shape
    side = height * pipe.codec.pixels_per_latent
    if height != width or not set(EmojiScenes.class_names) & set(pipe.labels):
        raise BadRequest(
            f"{foreign(pipe.name)} does not draw emoji scenes", field="scenes", expected="files"
        )
    world = EmojiScenes(seed=seed, size=side)
    found = (world.scene(index) for index in itertools.count())
    known = (scene for scene in found if world.class_names[scene.label] in pipe.labels)
    return list(itertools.islice(known, count))
