"""From noise to picture: choose a sampler, list its evaluations, run it.

    plan = sampler.plan(process, "heun", 20)          # every evaluation is known here
    x0 = sampler.run(plan, denoise, noise(shape), noise)

Shapes: B rows, C channels, h and w the latent grid.

The state is float32 throughout: what is handed to `denoise` is the whole state, so a stored state
is enough to go on from there. A sampler is a generator function `(plan, x, noise) -> Trajectory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ditscope.diffusion.ancestral import ddim, ddpm
from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.flow import FlowProcess
from ditscope.diffusion.multistep import dpm_solver, unipc
from ditscope.diffusion.ode import euler, heun
from ditscope.diffusion.respacing import respace
from ditscope.diffusion.schedule import Denoise, Evaluation, Noise, SamplerPlan, Trajectory
from ditscope.errors import BadRequest, NumericalError, foreign, listed

__all__ = ["SAMPLERS", "Denoise", "Evaluation", "Noise", "SamplerPlan", "plan", "run", "trajectory"]

MOST_FLOW_STEPS = 10_000


@dataclass(frozen=True)
class Sampler:
    """One way from noise to picture, and the kinds of process it can follow."""

    trajectory: Callable[[SamplerPlan, Tensor, Noise], Trajectory]
    kinds: tuple[str, ...]
    stages: int = 1  # evaluations per solver step, except the last, which has one


SAMPLERS = {
    "ddpm": Sampler(ddpm, ("ddpm",)),
    "euler": Sampler(euler, ("flow",)),
    "ddim": Sampler(ddim, ("ddpm",)),
    "heun": Sampler(heun, ("flow",), stages=2),
    "dpm++": Sampler(dpm_solver, ("ddpm", "flow")),
    "unipc": Sampler(unipc, ("ddpm", "flow")),
}
"""Samplers by name. The first that fits a process is its default."""


def plan(
    process: DDPMProcess | FlowProcess,
    sampler: str | None,
    steps: int | str,
    *,
    eta: float = 0.0,
    clip_denoised: bool = False,
) -> SamplerPlan:
    """Everything a sampling run will do, before it starts.

    Args:
        process: what the network was trained to undo.
        sampler: a name of `SAMPLERS`; None: the default of the process.
        steps: solver steps. For ddpm and ddim a number N means the published lists `"N"` and
            `"ddimN"`; a text names any of the lists of `respacing.respace`.
        eta: ddim only, 0 (no fresh noise) to 1 (as much as DDPM adds).
        clip_denoised: clamp every predicted picture to [-1, 1]. Meant for pixels, not for latents.

    Raises:
        BadRequest: if the sampler is unknown or does not fit, or for steps or eta out of range.
    """
    fitting = [each for each, known in SAMPLERS.items() if process.kind in known.kinds]
    name = fitting[0] if sampler is None else sampler
    if name not in fitting:
        problem = "does not fit" if name in SAMPLERS else "is unknown"
        raise BadRequest(
            f"{foreign(name)!r} {problem} ({process.kind} process)",
            field="sampler",
            expected=f"one of {', '.join(fitting)}",
        )
    if not 0 <= eta <= 1 or (eta != 0 and name != "ddim"):
        raise BadRequest(f"found {eta} with {name}", field="eta", expected="0 to 1, with ddim only")
    if isinstance(process, FlowProcess):
        return _flow_plan(process, name, _whole(steps, MOST_FLOW_STEPS), clip_denoised)
    respacing, timesteps = _kept(process, name, steps)
    tables = process.tables(timesteps)
    rows = reversed(range(len(timesteps)))
    return SamplerPlan(
        process=process,
        sampler=name,
        steps=len(timesteps),
        evaluations=tuple(
            Evaluation(index, index, 0, float(timesteps[row]), tables.noise[row].item())
            for index, row in enumerate(rows)
        ),
        eta=eta,
        clip_denoised=clip_denoised,
        respacing=respacing,
        tables=tables,
    )


def _kept(process: DDPMProcess, name: str, steps: int | str) -> tuple[str | None, tuple[int, ...]]:
    """Name of the published list, if it is one, and the kept timesteps, ascending."""
    last = process.num_timesteps - 1
    if name not in ("ddpm", "ddim"):
        # From last down to 0 in equal parts without the 0, from where the solvers step to no noise:
        # the default of diffusers. More than `last` of them would not be different timesteps.
        count = _whole(steps, last)
        parts = np.linspace(0, last, count + 1).round()
        return None, tuple(int(timestep) for timestep in parts[1:])
    if not isinstance(steps, str):
        count = _whole(steps, process.num_timesteps)
        steps = f"ddim{count}" if name == "ddim" else str(count)
    return steps, respace(steps, process.num_timesteps)


def _flow_plan(process: FlowProcess, name: str, steps: int, clip_denoised: bool) -> SamplerPlan:
    levels = process.noise_levels(steps).tolist()
    calls: list[tuple[int, int, float]] = []  # solver step, stage, noise level
    for step in range(steps):
        stages = SAMPLERS[name].stages if step < steps - 1 else 1
        calls += [(step, stage, levels[step + stage]) for stage in range(stages)]
    return SamplerPlan(
        process=process,
        sampler=name,
        steps=steps,
        evaluations=tuple(
            Evaluation(index, step, stage, level * process.time_scale, level)
            for index, (step, stage, level) in enumerate(calls)
        ),
        clip_denoised=clip_denoised,
    )


def _whole(steps: int | str, most: int) -> int:
    """`steps` as a number of solver steps, or BadRequest."""
    if type(steps) is not int or not 1 <= steps <= most:
        raise BadRequest(
            f"found {foreign(repr(steps))}", field="steps", expected=f"a whole number, 1 to {most}"
        )
    return steps


@torch.no_grad()
def run(plan: SamplerPlan, denoise: Denoise, x: Tensor, noise: Noise) -> Tensor:
    """The pictures (B, C, h, w) float32 that `plan` makes of the noise `x`.

    Args:
        plan: from `plan(...)`; it is not changed and can be run again.
        denoise: called exactly once per evaluation of the plan, in order, with the float32 state.
        x: (B, C, h, w), standard normal.
        noise: draws fresh noise; called only by samplers that add some.

    Raises:
        NumericalError: if the state or the network's output holds NaN or Inf; it names the step.
        BadRequest: if the network's output has not the channels the process needs.
    """
    way = trajectory(plan, x, noise)
    state, evaluation = next(way)
    while True:
        try:
            state, evaluation = way.send(denoise(state, evaluation))
        except StopIteration as end:
            return end.value


def trajectory(plan: SamplerPlan, x: Tensor, noise: Noise) -> Trajectory:
    """As `run`, for a caller that evaluates the network itself; every number is checked."""
    learns_sigma = isinstance(plan.process, DDPMProcess) and plan.process.learn_sigma
    rows, channels, *grid = x.shape
    expected = (rows, channels * 2 if learns_sigma else channels, *grid)
    way = SAMPLERS[plan.sampler].trajectory(plan, x.float(), noise)
    state, evaluation = next(way)
    while True:
        output = yield state, evaluation
        if output.shape != expected:
            raise BadRequest(
                f"the network returned {tuple(output.shape)} for a state {tuple(state.shape)}",
                field="learn_sigma" if output.shape[2:] == state.shape[2:] else "denoise",
                expected=f"{expected}, as the process has learned variance: {learns_sigma}",
            )
        _require_finite(state, "the state before", evaluation, plan)
        _require_finite(output, "the network's output in", evaluation, plan)
        try:
            state, evaluation = way.send(output)
        except StopIteration as end:
            _require_finite(end.value, "the picture after", plan.evaluations[-1], plan)
            return end.value


def _require_finite(x: Tensor, what: str, evaluation: Evaluation, plan: SamplerPlan) -> None:
    finite = torch.isfinite(x)
    if finite.all():
        return
    rows = torch.nonzero(~finite.flatten(1).all(dim=1)).flatten().tolist()
    raise NumericalError(
        f"NaN or Inf in {what} step {evaluation.solver_step} of {plan.steps} "
        f"(timestep {evaluation.timestep:g}), rows of the batch: {listed(rows)}",
        field="sampling",
        fix="Half precision and large guidance scales are the usual causes; try float32.",
    )
