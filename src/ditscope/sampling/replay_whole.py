"""Running a whole run again: every step on its stored latent, and the sampler between them.

The sampler begins with the noise of the run's seeds and is sent the outputs of the repeated steps.
So solvers that use several of them, or fresh noise, are repeated too, and the latent after every
step is compared with the stored one, the last with the end of the sampling.

Shapes: B rows of one batch, C channels, h and w the latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ditscope.core.manifest import PROBE
from ditscope.diffusion import sampler
from ditscope.diffusion.schedule import SamplerPlan
from ditscope.errors import BadRequest, BadRun
from ditscope.pipeline import Pipeline
from ditscope.runs.layout import MANIFEST
from ditscope.runs.outputs import ROUNDING
from ditscope.runs.reader import Run, ended
from ditscope.runs.replay import Replayed
from ditscope.sampling.draw import noise_of, sent
from ditscope.sampling.replay import agreements_of, elsewhere, pipeline_of, repeat


@dataclass
class _Difference:
    """Between latents that were computed again and those that are stored."""

    differing: set[int] = field(default_factory=set)  # steps after which any bit differs
    difference: float = 0.0
    largest: float = 0.0

    def add(self, step: int, again: NDArray[np.float32], stored: NDArray[np.float32]) -> None:
        """Compare the latents after `step`; those before the first are after step -1."""
        if not np.array_equal(again, stored):
            self.differing.add(step)
        self.difference = max(self.difference, float(np.abs(again - stored).max()))
        self.largest = max(self.largest, float(np.abs(stored).max()))


@torch.inference_mode()
def replay_whole(run: Run) -> Replayed:
    """Repeat every committed step of `run`, batch by batch.

    Raises:
        BadCheckpoint: the model is gone, or its weights are not those of the run.
        BadRun: a latent was lost, or edits, sampler or steps do not fit one another.
        NumericalError: NaN or Inf.
    """
    manifest, pipe = run.manifest, pipeline_of(run)
    for step in range(len(run.steps)):
        run.files.expect_kept(*run.layout.latents.chunk_files(step=step))
    plan = None if manifest.sampler.name == PROBE else _plan(run, pipe)
    found, steps = _Difference(), len(run.steps)
    for batch in manifest.batches:
        way = None
        if plan is not None:
            noise = noise_of([manifest.sample_seeds[sample] for sample in batch], pipe.device)
            way = sampler.trajectory(plan, noise((len(batch), *manifest.latent_shape)), noise)
            found.add(-1, next(way)[0].cpu().numpy(), _latent(run, 0, batch))
        for step in range(steps):
            output, guided = repeat(run, step, batch)
            agreements = agreements_of(run, step, batch, output).values()
            if not all(each.exact for each in agreements):
                found.differing.add(step)
            if way is None:  # no level of a probe follows from the one before
                continue
            state = sent(way, guided).cpu().numpy()
            if step + 1 < steps:
                found.add(step, state, _latent(run, step + 1, batch))
            elif ended(run.layout):
                found.add(step, state, run.final.isel(sample=list(batch)).values)
    rounding = found.difference <= ROUNDING[manifest.model.dtype] * found.largest
    return Replayed(
        steps=steps,
        exact_steps=steps - len(found.differing - {-1}),
        difference=found.difference,
        elsewhere=elsewhere(run) if found.differing else "",
        problem=_problem(run, found, rounding=rounding),
    )


def _problem(run: Run, found: _Difference, *, rounding: bool) -> str | None:
    """What is more than rounding."""
    if -1 in found.differing:
        return f"{run.path}: the first latents are not the noise of its seeds"
    if not rounding:
        return (
            f"{run.path}: replayed latents differ from the stored ones by {found.difference:.1e}, "
            f"which is no rounding; the first after step {min(found.differing)}"
        )
    return None


def _latent(run: Run, step: int, batch: tuple[int, ...]) -> NDArray[np.float32]:
    return run.latents.isel(step=step, sample=list(batch)).values


def _plan(run: Run, pipe: Pipeline) -> SamplerPlan:
    """The sampler of `run`. Raises BadRun if it does not make the steps of the manifest."""
    manifest, file = run.manifest, run.path / MANIFEST
    options = manifest.sampler.options
    eta, respacing = options.get("eta", 0.0), options.get("respacing")
    if not isinstance(eta, float | int) or not isinstance(respacing, str | None):
        raise BadRun("have a type that is none of theirs", file=file, field="sampler.options")
    try:
        plan = sampler.plan(
            pipe.process,
            manifest.sampler.name,
            manifest.sampler.steps if respacing is None else respacing,
            eta=eta,
            clip_denoised=options.get("clip_denoised") is True,
        )
    except BadRequest as reason:
        raise BadRun(reason.problem, file=file, field="sampler", expected=reason.expected) from None
    if _timesteps(plan) != [(step.timestep, step.evaluation) for step in manifest.steps]:
        raise BadRun("are not those of its sampler", file=file, field="steps")
    return plan


def _timesteps(plan: SamplerPlan) -> list[tuple[float, int]]:
    return [(each.timestep, each.evaluation) for each in plan.evaluations]
