"""`ditscope calibrate`: healthy runs of a model, kept beside it, for `ditscope diagnose`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import messages, print_json, progress, results

if TYPE_CHECKING:
    from ditscope.analysis.diagnose.calibration import Calibration
    from ditscope.analysis.diagnose.seen import Seen
    from ditscope.pipeline import Pipeline
    from ditscope.sampling.job import Job

PER_CLASS, MOST_PICTURES = 4, 256
"""Pictures that are drawn unless the user says how many."""
BATCH = 8
STEPS = (10, 20)
"""Of a sampling: with more steps than the least, latents of a noise level differ little."""
SCALES = (1.0, 0.5, 1.5)
"""Times the model's own guidance."""
MAPS = (0.4, 0.6, 0.7, 0.85, 1.0)
"""How far through a run are the steps whose Q and K are looked at, for the rules about objects."""


def calibrate(
    model: Annotated[str, typer.Argument(help="A bundled name, a folder or a weight file.")],
    weights: Annotated[
        Path | None, typer.Option(help="Other weights for the same network.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=16, help="Pictures. [default: 4 a class, at most 256]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Every picture's noise follows from it.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file. [default: beside the weights]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Draw pictures with a healthy model and keep what their attention is like.

    `ditscope diagnose` then judges runs of the same weights by it. Make it anew when the weights
    change: one that does not fit them is not used.
    """
    from ditscope.analysis.diagnose.calibrating import calibrated
    from ditscope.analysis.diagnose.calibration import calibration_path, write_calibration
    from ditscope.analysis.diagnose.engine import RULES
    from ditscope.pipeline import load

    pipe = load(model, weights=weights, device=device)
    jobs = healthy_jobs(pipe, num_samples, seed)
    seen = list(watched(jobs))
    found = calibrated(seen, RULES.values(), digests(model, weights))
    target = out or calibration_path(pipe.source, pipe.weights)
    write_calibration(target, found)
    if json:
        print_json({"file": str(target), "pictures": found.settings.pictures})
    else:
        results().print("\n".join(told(found, target)))


def healthy_jobs(pipe: Pipeline, count: int | None, seed: int) -> list[Job]:
    """What is drawn: all classes in turn, in batches that differ in steps and guidance."""
    from ditscope.core.statistics import DEFAULT_METRICS
    from ditscope.sampling.job import make_job

    classes = len(pipe.labels)
    count = count or min(PER_CLASS * classes, MOST_PICTURES)
    jobs = []
    for number, first in enumerate(range(0, count, BATCH)):
        size = min(BATCH, count - first)
        # Neighbours in the list of classes are often alike: a stride takes them apart.
        labels = [(first + index) * 7 % classes for index in range(size)]
        job = make_job(
            pipe,
            labels,
            {
                "steps": STEPS[number % len(STEPS)],
                "cfg_scale": guidance(pipe, SCALES[number % len(SCALES)]),
                "seed": seed * 1_000_003 + number,
                "batch_size": size,
                "metrics": (*DEFAULT_METRICS, "output_norm"),
            },
        )
        jobs.append(with_maps(job))
    return jobs


def guidance(pipe: Pipeline, share: float) -> float:
    """A share of the model's own guidance, above 1 if that is: else there is no other branch."""
    usual = pipe.defaults.cfg_scale
    return usual if usual <= 1 else max(usual * share, 1 + (usual - 1) / 4)


def with_maps(job: Job) -> Job:
    """The job that also stores Q and K of some steps of its middle and of its last third."""
    from dataclasses import replace

    last = len(job.plan.evaluations) - 1
    kept = {round(share * last) for share in MAPS}
    settings = job.settings.model_copy(update={"qk_steps": tuple(sorted(kept))})
    return replace(job, settings=settings)


def watched(jobs: list[Job]) -> Iterator[Seen]:
    """Each job's run, read into memory; on disk only one is kept at a time."""
    from ditscope.analysis.diagnose.seen import Seen
    from ditscope.sampling.draw import record_job

    with progress() as bar, tempfile.TemporaryDirectory() as folder:
        task = bar.add_task("drawing", total=sum(len(job.plan.evaluations) for job in jobs))
        for number, job in enumerate(jobs):
            place = Path(folder) / str(number)
            run = record_job(job, place, report=lambda done, total: bar.advance(task))
            seen = Seen(run)
            for branch in seen.branches:
                seen.statistics(branch)
            seen.objects()
            yield seen
            remove(place)


def remove(folder: Path) -> None:
    """Delete a run that has been read."""
    import shutil

    shutil.rmtree(folder)


def digests(model: str, weights: Path | None) -> dict[str, str]:
    """SHA-256 of the weights in each number type that they may compute in."""
    from ditscope.pipeline import DTYPES, load

    found = {}
    for dtype in DTYPES.values():
        found[dtype] = load(model, weights=weights, dtype=dtype).weights_sha256
    return found


def told(found: Calibration, target: Path) -> list[str]:
    """What was made, in words."""
    size = target.stat().st_size / 1e6
    rules = ", ".join(found.rules)
    if not found.objects:
        messages().print("note: no maps were stored, so nothing is known of objects")
    return [
        f"calibration  {target} ({size:.2f} MB)",
        f"pictures     {found.settings.pictures}, {found.settings.steps[0]} to "
        f"{found.settings.steps[1]} steps, guidance {found.settings.cfg_scale[0]:g} to "
        f"{found.settings.cfg_scale[1]:g}",
        f"rules        {rules}",
    ]
