"""Drawing pictures, recorded or not: the same numbers in both cases, bit for bit.

    run = sample(load("emoji"), ["dog face"], record="runs/dog")

Samples form fixed batches by index. A batch is computed as if it were alone: sampler, network and
decoder see it and nothing else. So a step of a run can be repeated later with the very batch it was
computed in, and the batches may be drawn by several processes (`ditscope.distributed`).

Shapes: S samples, B rows of one batch, C channels, h and w the latent grid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditscope.attention.edits.edit import is_edited
from ditscope.attention.edits.forward import EditedForward
from ditscope.core.axes import Branch
from ditscope.core.manifest import RunManifest
from ditscope.diffusion import sampler
from ditscope.diffusion.guidance import guide
from ditscope.diffusion.noise import SampleNoise
from ditscope.diffusion.schedule import Denoise, Evaluation, Noise, Trajectory
from ditscope.errors import BadRequest
from ditscope.pipeline import Pipeline
from ditscope.runs.reader import Run, open_run
from ditscope.runs.target import check_target
from ditscope.sampling.job import Job, make_job
from ditscope.sampling.recorder import Recorder, manifest_of

Report = Callable[[int, int], None]
"""Called after every evaluation of the network: how many are done, how many there are."""


@dataclass(frozen=True)
class Samples:
    """Pictures that were not recorded."""

    labels: tuple[str, ...]
    final: Tensor  # (S, C, h, w) float32, on the CPU
    images: NDArray[np.uint8]  # (S, height, width, 3)


def sample(
    pipe: Pipeline,
    labels: Sequence[str | int],
    *,
    record: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    report: Report | None = None,
    **settings: object,
) -> Run | Samples:
    """Draw one picture per label; with `record`, keep the whole run in that folder and open it.

    Args:
        pipe: From `load`.
        labels: Class names or indices, one per picture.
        record: A new folder for the run. Recording does not change one bit of the pictures.
        overwrite: Replace a run that is already there, once the new one is complete.
        report: Called after every evaluation of the network.
        settings: Fields of `ditscope.sampling.job.Settings`: steps, cfg_scale, seed, sampler,
            edits, only, ...

    Raises:
        BadRequest: an unknown class, setting, sampler or metric, or a value out of range; an edit
            of what does not exist; a record inside a block of `edit`, which it could not tell.
        ResourceError: the run cannot be written; found before anything is computed if it can be.
        NumericalError: NaN or Inf; names the step and the rows.
        NothingWatched: the network made other attention calls than its census says.
    """
    job = make_job(pipe, labels, settings)
    if record is not None:
        return record_job(job, record, overwrite=overwrite, report=report)
    return draw_job(job, report)


def draw_job(job: Job, report: Report | None = None) -> Samples:
    """Draw what `job` says and keep nothing but the pictures. Raises NumericalError."""
    final = _draw(job, report, None)
    names = tuple(job.pipe.labels[index] for index in job.classes)
    return Samples(names, torch.cat(final), _decoded(job, final))


def record_job(
    job: Job,
    path: str | os.PathLike[str],
    *,
    manifest: RunManifest | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Run:
    """Draw what `job` says into the run directory `path`, and open it.

    `manifest` is that of the job, if the caller has it already. Raises as `sample`.
    """
    if is_edited(job.pipe.model):
        raise BadRequest(
            "the network is being edited, and the run would not say so",
            field="edits",
            fix="sample(..., edits=[...]) in place of the block of ds.edit: then replay repeats it",
        )
    target = check_target(path, overwrite=overwrite)
    with Recorder(job, manifest or manifest_of(job), target, overwrite=overwrite) as recorder:
        final = _draw(job, report, recorder)
        recorder.finish(torch.cat(final), _decoded(job, final))
    return open_run(target)


@torch.inference_mode()
def _draw(job: Job, report: Report | None, recorder: Recorder | None) -> list[Tensor]:
    """From noise to final latents: one (B, C, h, w) float32 for each batch, on the CPU.

    Every batch follows a trajectory of its own, so that its numbers do not depend on what else is
    drawn. All of them go on in step, so that a step of the run is whole at once.
    """
    total, seeds, trajectories, states = len(job.plan.evaluations), job.sample_seeds, [], []
    for batch in job.batches:
        noise = noise_of([seeds[index] for index in batch], job.pipe.device)
        start = noise((len(batch), *job.pipe.latent_shape))
        trajectories.append(sampler.trajectory(job.plan, start, noise))
        states.append(next(trajectories[-1])[0])
    parts = [_guided(job, batch, recorder) for batch in job.batches]
    for evaluation in job.plan.evaluations:
        outputs = [part(x, evaluation) for part, x in zip(parts, states, strict=True)]
        if recorder:
            recorder.commit(torch.cat(states), evaluation)
        if report:
            report(evaluation.index + 1, total)
        states = [sent(*each) for each in zip(trajectories, outputs, strict=True)]
    return [final.cpu() for final in states]


def noise_of(seeds: Sequence[int], device: torch.device) -> Noise:
    """Draws of the samples of these seeds, on `device`."""
    draw = SampleNoise(seeds)
    return lambda shape: draw(shape).to(device)


def sent(trajectory: Trajectory, output: Tensor) -> Tensor:
    """The state after the network's `output`; after the last one it is the picture."""
    try:
        return trajectory.send(output)[0]
    except StopIteration as end:
        return end.value


def _decoded(job: Job, final: list[Tensor]) -> NDArray[np.uint8]:
    """Pictures (S, height, width, 3), decoded batch by batch like all else."""
    return np.concatenate([job.pipe.codec.decode(each) for each in final])


def _guided(job: Job, batch: tuple[int, ...], recorder: Recorder | None) -> Denoise:
    """The denoiser of one batch, with its guidance, edited, and watched if it is recorded."""
    pipe, edits = job.pipe, job.settings.edits

    def network(
        x: Tensor,
        timestep: float,
        labels: Tensor,
        evaluation: Evaluation,
        branches: tuple[Branch, ...],
    ) -> Tensor:
        watching = recorder.watching(batch, evaluation, branches) if recorder else nullcontext()
        editing = EditedForward(edits, job.sites, evaluation.index) if edits else nullcontext()
        with watching, editing:
            output = pipe.network(x, timestep, labels)
        if recorder:
            recorder.saw(output, batch, branches)
        return output

    return guide(
        network,
        torch.tensor([job.classes[index] for index in batch], device=pipe.device),
        pipe.model.config.null_label,
        job.cfg_scale,
        channels=job.settings.cfg_channels,
        interval=job.settings.cfg_interval,
    )
