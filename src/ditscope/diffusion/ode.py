"""Euler and Heun for flow matching: solve dx/ds = velocity from s = 1 (noise) to s = 0 (picture).

Shapes: B rows, C channels, h and w the latent grid.

The same numbers as diffusers' flow-matching Euler and Heun schedulers on the same noise levels
(tested). Ours go evenly from 1 to 0; theirs, left alone, make the last step from 0.001.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from ditscope.diffusion.flow import FlowProcess
from ditscope.diffusion.schedule import Evaluation, Noise, SamplerPlan, Trajectory


def euler(plan: SamplerPlan, x: Tensor, noise: Noise) -> Trajectory:
    """One straight step per noise level; first order."""
    levels = [evaluation.noise_level for evaluation in plan.evaluations]
    for evaluation, (level, following) in zip(
        plan.evaluations, pairwise([*levels, 0.0]), strict=True
    ):
        slope = _velocity(plan, (yield x, evaluation), x, evaluation)
        x = x + (following - level) * slope
    return x


def heun(plan: SamplerPlan, x: Tensor, noise: Noise) -> Trajectory:
    """Average the slopes at both ends of a step; second order. The step to s = 0 is Euler's.

    The last step has no second stage, since at s = 0 a picture prediction has no velocity.
    """
    stages = iter(plan.evaluations)
    for first in stages:
        slope = _velocity(plan, (yield x, first), x, first)
        if first.solver_step == plan.steps - 1:
            return x - first.noise_level * slope
        second = next(stages)
        step = second.noise_level - first.noise_level
        ahead = x + step * slope
        slope_ahead = _velocity(plan, (yield ahead, second), ahead, second)
        x = x + step * 0.5 * (slope + slope_ahead)
    return x


def _velocity(plan: SamplerPlan, output: Tensor, x: Tensor, evaluation: Evaluation) -> Tensor:
    """The slope (B, C, h, w) at state `x`.

    A picture prediction is divided by the noise level itself, without the floor of the training
    loss: the step that multiplies it is never longer than the level.
    """
    assert isinstance(plan.process, FlowProcess)
    if plan.process.prediction == "velocity" and not plan.clip_denoised:
        return output.float()
    return (x - plan.picture(output, x, evaluation)) / evaluation.noise_level
