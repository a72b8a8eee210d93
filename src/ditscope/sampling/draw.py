"""Drawing pictures, recorded or not: the same numbers in both cases, bit for bit.

    run = sample(load("emoji"), ["dog face"], record="runs/dog")

All samples move through the sampler together; the network sees them in fixed batches by index, so
that a step of a run can be repeated later with the very batch it was computed in.

Shapes: S samples, B rows of one batch, C channels, h and w the latent grid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditscope.core.axes import Branch
from ditscope.diffusion import sampler
from ditscope.diffusion.guidance import guide
from ditscope.diffusion.noise import SampleNoise
from ditscope.diffusion.schedule import Denoise, Evaluation
from ditscope.pipeline import Pipeline
from ditscope.runs.reader import Run, open_run
from ditscope.runs.target import check_target
from ditscope.sampling.job import Job, make_job
from ditscope.sampling.recorder import Recorder

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
        settings: Fields of `ditscope.sampling.job.Settings`: steps, cfg_scale, seed, sampler, ...

    Raises:
        BadRequest: an unknown class, setting, sampler or metric, or a value out of range.
        ResourceError: the run cannot be written; found before anything is computed if it can be.
        NumericalError: NaN or Inf; names the step and the rows.
        NothingWatched: the network made other attention calls than its census says.
    """
    job = make_job(pipe, labels, settings)
    if record is None:
        final = _draw(job, report, None)
        names = tuple(pipe.labels[index] for index in job.classes)
        return Samples(names, final, pipe.codec.decode(final))
    target = check_target(record, overwrite=overwrite)
    with Recorder(job, target, overwrite=overwrite) as recorder:
        final = _draw(job, report, recorder)
        recorder.finish(final, pipe.codec.decode(final))
    return open_run(target)


@torch.inference_mode()
def _draw(job: Job, report: Report | None, recorder: Recorder | None) -> Tensor:
    """From noise to final latents (S, C, h, w) float32."""
    pipe, total = job.pipe, len(job.plan.evaluations)
    draw_noise = SampleNoise(job.sample_seeds)
    parts = [_guided(job, batch, recorder) for batch in job.batches]

    def noise(shape: Sequence[int]) -> Tensor:
        return draw_noise(shape).to(pipe.device)

    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        rows = x.split(job.settings.batch_size)
        output = torch.cat([part(r, evaluation) for part, r in zip(parts, rows, strict=True)])
        if recorder:
            recorder.commit(x, evaluation)
        if report:
            report(evaluation.index + 1, total)
        return output

    x = noise((len(job.classes), *pipe.latent_shape))
    return sampler.run(job.plan, denoise, x, noise).cpu()


def _guided(job: Job, batch: tuple[int, ...], recorder: Recorder | None) -> Denoise:
    """The denoiser of one batch, with its guidance, watched by the recorder if there is one."""
    pipe = job.pipe

    def network(
        x: Tensor,
        timestep: float,
        labels: Tensor,
        evaluation: Evaluation,
        branches: tuple[Branch, ...],
    ) -> Tensor:
        if recorder is None:
            return pipe.network(x, timestep, labels)
        with recorder.watching(batch, evaluation, branches):
            return pipe.network(x, timestep, labels)

    return guide(
        network,
        torch.tensor([job.classes[index] for index in batch], device=pipe.device),
        pipe.model.config.null_label,
        job.cfg_scale,
        channels=job.settings.cfg_channels,
        interval=job.settings.cfg_interval,
    )
