"""The DDPM and DDIM samplers, on a process with kept timesteps.

Shapes: B rows, C channels, h and w the latent grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditscope.diffusion.ddpm import DDPMTables, at, posterior
from ditscope.diffusion.schedule import Evaluation, Noise, SamplerPlan, Trajectory


def ddpm(plan: SamplerPlan, x: Tensor, noise: Noise) -> Trajectory:
    """Draw from the predicted distribution of the step before, to the end (arXiv:2006.11239)."""
    tables = _tables(plan, x)
    for evaluation in plan.evaluations:
        t, last = _index(plan, evaluation, x)
        output = yield x, evaluation
        fresh = torch.zeros_like(x) if last else noise(x.shape).to(x)
        x = ddpm_step(tables, output, x, t, fresh, clip_denoised=plan.clip_denoised)
    return x


def ddim(plan: SamplerPlan, x: Tensor, noise: Noise) -> Trajectory:
    """Step along the predicted noise; `eta` mixes fresh noise in (arXiv:2010.02502, eq. 12)."""
    tables = _tables(plan, x)
    for evaluation in plan.evaluations:
        t, last = _index(plan, evaluation, x)
        output = yield x, evaluation
        fresh = None if last or plan.eta == 0 else noise(x.shape).to(x)
        x = ddim_step(tables, output, x, t, fresh, plan.eta, clip_denoised=plan.clip_denoised)
    return x


def ddpm_step(
    tables: DDPMTables,
    output: Tensor,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    clip_denoised: bool = False,
) -> Tensor:
    """One DDPM step (B, C, h, w) -> (B, C, h, w); rows at index 0 get the mean, without noise."""
    step = posterior(tables, output, x, t, clip_denoised=clip_denoised)
    adds_noise = (t != 0).view(-1, 1, 1, 1)
    return step.mean + adds_noise * (0.5 * step.log_variance).exp() * noise


def ddim_step(
    tables: DDPMTables,
    output: Tensor,
    x: Tensor,
    t: Tensor,
    noise: Tensor | None,
    eta: float = 0.0,
    *,
    clip_denoised: bool = False,
) -> Tensor:
    """One DDIM step (B, C, h, w) -> (B, C, h, w). `noise` may be None where `eta` is 0.

    With eta 1 it has the mean and the variance of a DDPM step with the small fixed variance.
    """
    x0 = posterior(tables, output, x, t, clip_denoised=clip_denoised).x0
    epsilon = (at(tables.recip_signal, t) * x - x0) / at(tables.noise_to_signal, t)
    fresh_power = eta**2 * at(tables.variance, t)  # 0 at index 0
    kept = (at(tables.noise_power_before, t) - fresh_power).clamp_min(0).sqrt()
    moved = at(tables.signal_before, t) * x0 + kept * epsilon
    return moved if noise is None else moved + fresh_power.sqrt() * noise


def _tables(plan: SamplerPlan, x: Tensor) -> DDPMTables:
    assert plan.tables is not None
    return plan.tables.to(x.device)


def _index(plan: SamplerPlan, evaluation: Evaluation, x: Tensor) -> tuple[Tensor, bool]:
    """Row of the tables for every sample (B,), and whether this is the step to the picture."""
    row = plan.steps - 1 - evaluation.solver_step
    return torch.full((x.shape[0],), row, device=x.device), row == 0
