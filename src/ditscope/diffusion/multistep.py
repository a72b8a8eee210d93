"""DPM-Solver++ (arXiv:2211.01095) and UniPC (arXiv:2302.04867), over diffusers' schedulers.

Shapes: B rows, C channels, h and w the latent grid.

The solvers are theirs; the tables are ours, in float64. Theirs are float32, start a flow at 0.999
instead of 1, and cut the fraction off a flow's timesteps. The network's output is turned into a
picture before it reaches them, since of an output with learned variance they keep 3 channels,
whatever the latent has. diffusers is imported when such a sampler runs: that takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditscope.diffusion.flow import FlowProcess
from ditscope.diffusion.schedule import Noise, SamplerPlan, Trajectory

LARGEST_FLOW_LEVEL = 1 - 1e-6
"""Stands for pure noise inside the solvers, which take the logarithm of what signal is left."""


def dpm_solver(plan: SamplerPlan, x: Tensor, noise: Noise) -> Trajectory:
    """DPM-Solver++(2M): second order from the present and the previous picture."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="sample",
        use_flow_sigmas=isinstance(plan.process, FlowProcess),
    )
    return _drive(scheduler, plan, x)


def unipc(plan: SamplerPlan, x: Tensor, noise: Noise) -> Trajectory:
    """UniPC-2: a second-order predictor, corrected when the next picture is known."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        solver_order=2,
        solver_type="bh2",
        prediction_type="sample",
        use_flow_sigmas=isinstance(plan.process, FlowProcess),
    )
    return _drive(scheduler, plan, x)


def _drive(scheduler: Any, plan: SamplerPlan, x: Tensor) -> Trajectory:
    """Let a fresh diffusers `scheduler` choose the next state after every evaluation of `plan`."""
    # What its set_timesteps would set, with our numbers; it then counts its steps by itself.
    scheduler.num_inference_steps = plan.steps
    scheduler.timesteps = torch.tensor([evaluation.timestep for evaluation in plan.evaluations])
    scheduler.sigmas = _sigmas(plan)
    scheduler.set_begin_index(0)
    for evaluation, timestep in zip(plan.evaluations, scheduler.timesteps, strict=True):
        picture = plan.picture((yield x, evaluation), x, evaluation)
        (x,) = scheduler.step(picture, timestep, x, return_dict=False)
    return x


def _sigmas(plan: SamplerPlan) -> Tensor:
    """Noise in the solvers' units, with the final 0: (steps + 1,), float64, falling."""
    if isinstance(plan.process, FlowProcess):
        levels = [min(each.noise_level, LARGEST_FLOW_LEVEL) for each in plan.evaluations]
        return torch.tensor([*levels, 0.0], dtype=torch.float64)
    assert plan.tables is not None
    return torch.cat([plan.tables.noise_to_signal.flip(0), torch.zeros(1, dtype=torch.float64)])
