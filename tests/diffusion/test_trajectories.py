"""Whole published sampling runs: the states of every step, with a network and without one."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from ditscope.diffusion import sampler
from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.guidance import guide
from ditscope.diffusion.schedule import Evaluation
from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT

SAME_ARITHMETIC = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether exp rounds here as where the published numbers were computed."""

STRICT = 2e-6 if SAME_ARITHMETIC else 3e-6  # L2, relative, every step


class Given:
    """Noise drawn beforehand, (steps, rows, ...); the published runs draw for the doubled batch."""

    def __init__(self, steps: Tensor) -> None:
        self.steps = iter(steps)

    def __call__(self, shape: torch.Size) -> Tensor:
        return next(self.steps)[: shape[0]]


def never(shape: torch.Size) -> Tensor:
    raise AssertionError("this sampler adds no noise")


def assert_states_equal(states: list[Tensor], expected: Tensor) -> None:
    assert len(states) == len(expected)
    assert torch.equal(states[0], expected[0])
    for step, (found, wanted) in enumerate(zip(states, expected, strict=True)):
        error = (found - wanted).norm() / wanted.norm()
        assert error <= STRICT, f"after step {step}: {error:.2e}"


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_network_with_published_guidance(golden, name: str) -> None:
    g, metadata = golden(f"trajectory_{name}10_cfg4")
    model = DiT(DiTConfig(**json.loads(metadata["config"]))).eval()
    weights = {k.removeprefix("weights."): v for k, v in g.items() if k.startswith("weights.")}
    model.load_state_dict(weights, strict=True)

    def network(x, timestep, labels, evaluation, branches):
        assert branches == ("cond", "uncond")
        return model(x, torch.full((len(x),), timestep), labels)

    states: list[Tensor] = []
    denoise = guide(network, g["in.y"], model.config.null_label, 4.0, channels=3)

    def recorded(x: Tensor, evaluation: Evaluation) -> Tensor:
        states.append(x)
        return denoise(x, evaluation)

    plan = sampler.plan(DDPMProcess(), name, 10)
    assert plan.respacing == metadata["respacing"]
    noise = Given(g["in.step_noise_for_2n_rows"]) if name == "ddpm" else never
    states.append(sampler.run(plan, recorded, g["in.z"], noise))
    assert_states_equal(states, g["out.x_per_step"])


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_sampler_alone_on_given_outputs(golden, name: str) -> None:
    g, _ = golden(f"sampler_trace_{name}25")
    plan = sampler.plan(DDPMProcess(), name, 25)
    assert [e.timestep for e in plan.evaluations] == g["in.original_t_per_step"].tolist()
    states: list[Tensor] = []

    def given(x: Tensor, evaluation: Evaluation) -> Tensor:
        states.append(x)
        return g["in.model_output_per_step"][evaluation.index]

    noise = Given(g["in.noise_per_step"]) if name == "ddpm" else never
    states.append(sampler.run(plan, given, g["out.x_per_step"][0], noise))
    assert_states_equal(states, g["out.x_per_step"])
