"""The same pictures as diffusers' own schedulers, on a network that is bounded and not linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.flow import FlowProcess
from ditscope.diffusion.sampler import Evaluation, plan, run

MULTISTEP = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}

# numpy 2 deprecates how diffusers turns its own table into an array; our code does not go there.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def network(x: Tensor, timestep: float) -> Tensor:
    return torch.tanh(1.5 * x + timestep / 1000)


def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
    return network(x, evaluation.timestep)


def start() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def theirs(scheduler) -> Tensor:
    x = start()
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        (x,) = scheduler.step(network(x, timestep.item()), timestep, x, return_dict=False)
    return x


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("steps", [5, 10, 25, 100])
@pytest.mark.parametrize("sampler", list(MULTISTEP))
def test_multistep_on_ddpm(sampler: str, steps: int) -> None:
    """The same timesteps; the pictures differ by the rounding of their float32 tables."""
    scheduler = MULTISTEP[sampler](beta_schedule="linear", beta_start=1e-4, beta_end=2e-2)
    scheduler.set_timesteps(steps)
    planned = plan(DDPMProcess(learn_sigma=False), sampler, steps)
    assert [each.timestep for each in planned.evaluations] == scheduler.timesteps.tolist()
    assert relative(run(planned, denoise, start(), never), theirs(scheduler)) < 5e-6


@pytest.mark.parametrize("sampler", list(MULTISTEP))
def test_the_same_timesteps_for_every_number_of_steps(sampler: str) -> None:
    scheduler = MULTISTEP[sampler]()
    for steps in range(1, 1000, 37):
        scheduler.set_timesteps(steps)
        planned = plan(DDPMProcess(), sampler, steps)
        assert [each.timestep for each in planned.evaluations] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("sampler", list(MULTISTEP))
def test_multistep_on_a_flow(sampler: str) -> None:
    """With our noise levels in their place, their flow mode takes the same steps."""
    planned = plan(FlowProcess(), sampler, 10)
    scheduler = MULTISTEP[sampler](prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(10)
    levels = [1 - 1e-6, *(each.noise_level for each in planned.evaluations[1:]), 0.0]
    scheduler.sigmas = torch.tensor(levels)
    scheduler.timesteps = torch.tensor([each.timestep for each in planned.evaluations])
    assert relative(run(planned, denoise, start(), never), theirs(scheduler)) < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20))
    planned = plan(FlowProcess(shift=shift), "euler", 20)
    assert relative(run(planned, denoise, start(), never), theirs(scheduler)) < 2e-6


def test_heun() -> None:
    planned = plan(FlowProcess(), "heun", 20)
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(20)
    levels = [each.noise_level for each in planned.evaluations]
    scheduler.sigmas = torch.tensor([*levels, 0.0])
    scheduler.timesteps = torch.tensor([each.timestep for each in planned.evaluations])
    assert relative(run(planned, denoise, start(), never), theirs(scheduler)) < 2e-6


def never(shape: torch.Size) -> Tensor:
    raise AssertionError("these samplers add no noise")
