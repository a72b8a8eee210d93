"""Looking at real pictures: each is noised to given levels and seen once at each of them.

    scenes = [EmojiScenes(seed=9).scene(index) for index in range(8)]
    run = probe(load("emoji"), scenes, noise_levels=[0.6, 0.3, 0.1], record="runs/scenes")

What comes out is a run like any other: its steps are the noise levels, its images the pictures
themselves. No step follows from the one before, and nothing is drawn.

Shapes: S pictures, B rows of one batch, C channels, h and w the latent grid.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ditscope.attention.edits.edit import is_edited
from ditscope.attention.edits.forward import EditedForward
from ditscope.core.axes import BRANCHES, Branch
from ditscope.core.labels import find_class
from ditscope.core.manifest import PROBE
from ditscope.data.given import Given, Picture, given_pictures
from ditscope.data.scenes import EmojiScenes
from ditscope.diffusion.ddpm import DDPMProcess, q_sample
from ditscope.diffusion.noise import SampleNoise
from ditscope.diffusion.schedule import Evaluation, SamplerPlan
from ditscope.errors import BadRequest, foreign, listed
from ditscope.pipeline import Pipeline, Process
from ditscope.runs.reader import Run, open_run
from ditscope.runs.target import check_target
from ditscope.sampling.draw import Report
from ditscope.sampling.job import Job, Settings, checked, parsed
from ditscope.sampling.recorder import Recorder, manifest_of

RECORDING = ("seed", "batch_size", "metrics", "detail", "only", "qk_steps", "edits")
"""Settings of a sampling that a probe has too."""

WITH_BOTH = 4.0
"""Any guidance scale but 1: both branches are evaluated, and never mixed."""


def probe(
    pipe: Pipeline,
    images: Iterable[Picture],
    labels: Sequence[str | int | None] | None = None,
    *,
    noise_levels: Sequence[float],
    record: str | os.PathLike[str],
    branches: Sequence[Branch] = ("cond",),
    overwrite: bool = False,
    report: Report | None = None,
    **settings: object,
) -> Run:
    """Record what a network attends to in real pictures at given noise levels.

    Args:
        pipe: From `load`.
        images: (S, h, w, 3) uint8; or a list of such arrays, files, pictures of Pillow, or emoji
            scenes, whose masks then are `run.masks`. Files are scaled to cover the size of the
            network's pictures and cut around the middle.
        labels: What the network is told of each picture: class names or indices; None is no class.
            Without them it is told the classes of scenes, and nothing of other pictures.
        noise_levels: Share of noise of each step, above 0 to 1, the noisiest first whatever their
            order: s of a flow; sqrt(1 - alpha_bar) of DDPM, of which the nearest there is counts.
        record: A new folder for the run.
        branches: `("cond", "uncond")` evaluates the network without the class too.
        overwrite: Replace a run that is already there, once the new one is complete.
        report: Called after every noise level.
        settings: seed (the noise of picture i follows from it and i; each level has the same),
            batch_size, metrics, detail, only, qk_steps (indices of noise levels), edits.

    Raises:
        BadRequest: a picture, class, noise level or setting that does not fit.
        BadDataset: a file that is no picture.
        ResourceError: the run cannot be written.
        NumericalError: NaN or Inf in a latent.
        NothingWatched: the network made other attention calls than its census says.
    """
    if is_edited(pipe.model):
        raise BadRequest(
            "the network is being edited, and the run would not say so",
            field="edits",
            fix="probe(..., edits=[...]) in place of the block of ds.edit",
        )
    chosen = parsed(_recording(settings))
    evaluations = evaluations_at(pipe.process, noise_levels)
    each = pipe.codec.pixels_per_latent
    _, height, width = pipe.latent_shape
    given = given_pictures(images, (height * each, width * each))
    job = _job(pipe, chosen, _classes(pipe, given, labels), evaluations, _checked(branches))
    target = check_target(record, overwrite=overwrite)
    _look(job, given, target, overwrite=overwrite, report=report)
    return open_run(target)


@torch.inference_mode()
def _look(
    job: Job,
    given: Given,
    target: Path,
    *,
    overwrite: bool,
    report: Report | None,
) -> None:
    """One forward of every batch at every noise level, recorded into `target`."""
    clean = job.pipe.codec.encode(given.pixels, job.pipe.device)  # (S, C, h, w)
    if tuple(clean.shape[1:]) != job.pipe.latent_shape:
        raise BadRequest(
            f"the autoencoder makes latents {tuple(clean.shape[1:])}",
            field="images",
            expected=f"{job.pipe.latent_shape}, as the network takes",
        )
    noise = SampleNoise(job.sample_seeds)(clean.shape)
    shape = None if given.masks is None else given.masks.shape[1:]
    manifest = manifest_of(job).model_copy(update={"mask_shape": shape})
    with Recorder(job, manifest, target, overwrite=overwrite) as recorder:
        for done, evaluation in enumerate(job.plan.evaluations, start=1):
            x = noised(job.pipe.process, clean, noise, evaluation)
            for batch in job.batches:
                _forward(job, batch, x[list(batch)], evaluation, recorder)
            recorder.commit(x, evaluation)
            if report:
                report(done, len(job.plan.evaluations))
        recorder.finish(clean, given.pixels, given.masks)


def _forward(
    job: Job, batch: tuple[int, ...], x: Tensor, evaluation: Evaluation, recorder: Recorder
) -> None:
    branches, device = _branches(job), job.pipe.device
    own = torch.tensor([job.classes[index] for index in batch], device=device)
    none = torch.full_like(own, job.pipe.model.config.null_label)
    y = torch.cat([own if branch == "cond" else none for branch in branches])
    edits = job.settings.edits
    editing = EditedForward(edits, job.sites, evaluation.index) if edits else nullcontext()
    with recorder.watching(batch, evaluation, branches), editing:
        output = job.pipe.network(x.repeat(len(branches), 1, 1, 1), evaluation.timestep, y)
    recorder.saw(output, batch, branches)


def evaluations_at(process: Process, noise_levels: Sequence[float]) -> tuple[Evaluation, ...]:
    """What the network is told at each noise level. Raises BadRequest for one out of range."""
    try:
        levels = sorted((float(level) for level in noise_levels), reverse=True)
    except (TypeError, ValueError):
        raise BadRequest(
            f"found {foreign(repr(noise_levels))}", field="noise_levels", expected="a list"
        ) from None
    if not levels:
        raise BadRequest("found none", field="noise_levels", expected="one or more")
    strange = [level for level in levels if not (math.isfinite(level) and 0 < level <= 1)]
    if strange:
        raise BadRequest(
            f"found {listed(strange)}", field="noise_levels", expected="above 0, at most 1"
        )
    if not isinstance(process, DDPMProcess):
        told = [(level * process.time_scale, level) for level in levels]
    else:
        known = (1 - process.alphas_cumprod()).sqrt()  # (num_timesteps,) float64, rising
        nearest = [int((known - level).abs().argmin()) for level in levels]
        told = [(float(index), known[index].item()) for index in nearest]
    if len(set(told)) < len(told):
        raise BadRequest("names one twice", field="noise_levels", expected="different levels")
    return tuple(
        Evaluation(index, index, 0, timestep, level) for index, (timestep, level) in enumerate(told)
    )


def noised(process: Process, clean: Tensor, noise: Tensor, evaluation: Evaluation) -> Tensor:
    """Latents (S, C, h, w) at the noise level of an evaluation."""
    if isinstance(process, DDPMProcess):
        t = torch.full((len(clean),), int(evaluation.timestep))
        return q_sample(process.tables(), clean, t, noise)
    return process.add_noise(clean, noise, torch.full((len(clean),), evaluation.noise_level))


def _job(
    pipe: Pipeline,
    chosen: Settings,
    classes: tuple[int, ...],
    evaluations: tuple[Evaluation, ...],
    branches: tuple[Branch, ...],
) -> Job:
    if "uncond" in branches:
        _require_null(pipe, "branches")
        if set(classes) == {pipe.model.config.null_label}:
            raise BadRequest(
                "without a class both branches are one",
                field="branches",
                expected="a class for some picture",
            )
    plan = SamplerPlan(pipe.process, PROBE, len(evaluations), evaluations)
    return checked(Job(pipe, chosen, classes, plan, WITH_BOTH if len(branches) == 2 else 1.0))


def _branches(job: Job) -> tuple[Branch, ...]:
    return BRANCHES if job.cfg_scale == WITH_BOTH else ("cond",)


def _checked(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    found = tuple(branches)
    if found not in (("cond",), BRANCHES):
        raise BadRequest(
            f"found {foreign(found)}", field="branches", expected=f"('cond',) or {BRANCHES}"
        )
    return found


def _recording(settings: dict[str, object]) -> dict[str, object]:
    strange = sorted(settings.keys() & Settings.model_fields.keys() - set(RECORDING))
    if strange:
        raise BadRequest(
            f"{strange[0]} is of samplings, and a probe draws nothing",
            field=strange[0],
            expected=f"one of {', '.join(RECORDING)}",
        )
    return settings


def _classes(
    pipe: Pipeline, given: Given, labels: Sequence[str | int | None] | None
) -> tuple[int, ...]:
    """The label of each picture, that of no class where none is known. Raises BadRequest."""
    if labels is None:
        world = EmojiScenes.class_names
        names = [None if label is None else world[label] for label in given.scene_labels]
        wanted: list[str | int | None] = [name if name in pipe.labels else None for name in names]
    elif isinstance(labels, str) or len(labels) != len(given.pixels):
        raise BadRequest(
            f"found {foreign(repr(labels))}",
            field="labels",
            expected=f"a list of {len(given.pixels)} classes, one per picture",
        )
    else:
        wanted = list(labels)
    if None in wanted:
        _require_null(pipe, "labels")
    null = pipe.model.config.null_label
    return tuple(null if each is None else find_class(each, pipe.labels) for each in wanted)


def _require_null(pipe: Pipeline, field: str) -> None:
    if pipe.model.config.class_dropout_prob == 0:
        raise BadRequest(
            "this network knows no pictures without a class",
            field=field,
            expected="a class for every picture, and the conditional branch",
        )
