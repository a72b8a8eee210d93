"""Samplers against the exact solution: for normally distributed data the best network is known.

Data N(m, c^2) seen as x = a x0 + s noise has the best prediction

    E[x0 | x] = m + a c^2 / (a^2 c^2 + s^2) * (x - a m),

and the deterministic flow carries x = a m + z sqrt(a^2 c^2 + s^2) along constant z, to m + c z.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.flow import FlowProcess
from ditscope.diffusion.sampler import Evaluation, plan, run

MEAN = 0.5
Z = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).view(1, 1, 1, -1)
DDPM = DDPMProcess(learn_sigma=False)


def powers(process: DDPMProcess | FlowProcess, evaluation: Evaluation) -> tuple[float, float]:
    """Shares of signal and noise, a and s."""
    s = evaluation.noise_level
    return (1 - s if process.kind == "flow" else math.sqrt(1 - s * s)), s


def best_network(process: DDPMProcess | FlowProcess, std: float):
    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        a, s = powers(process, evaluation)
        x = x.double()
        x0 = MEAN + a * std**2 / (a * a * std**2 + s * s) * (x - a * MEAN)
        noise = (x - a * x0) / s
        if process.kind == "ddpm":
            return noise.float()
        return (x0 if process.prediction == "x" else noise - x0).float()

    return denoise


def error(process: DDPMProcess | FlowProcess, sampler: str, steps: int, std: float) -> float:
    """Largest distance from the exact picture."""
    planned = plan(process, sampler, steps)
    a, s = powers(process, planned.evaluations[0])
    start = a * MEAN + (a * a * std**2 + s * s) ** 0.5 * Z
    found = run(planned, best_network(process, std), start, never)
    return (found - (MEAN + std * Z)).abs().max().item()


def never(shape: torch.Size) -> Tensor:
    raise AssertionError("this sampler adds no noise")


@pytest.mark.parametrize("prediction", ["velocity", "x"])
@pytest.mark.parametrize(
    ("sampler", "order"), [("euler", 1), ("heun", 2), ("dpm++", 2), ("unipc", 2)]
)
def test_order_on_a_flow(prediction: str, sampler: str, order: int) -> None:
    process = FlowProcess(prediction=prediction)
    errors = [error(process, sampler, steps, 2.0) for steps in (50, 100, 200)]
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured == pytest.approx([order, order], abs=0.3)


def test_a_shifted_flow_ends_in_the_same_place() -> None:
    errors = [error(FlowProcess(shift=3.0), "heun", steps, 0.5) for steps in (25, 100, 400)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] and errors[2] < 1e-3


def test_order_of_ddim() -> None:
    errors = [error(DDPM, "ddim", steps, 1.0) for steps in (50, 100, 200)]
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], abs=0.1)


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_multistep_on_ddpm_is_at_least_second_order(sampler: str) -> None:
    errors = [error(DDPM, sampler, steps, 0.5) for steps in (10, 20, 40)]
    assert errors[0] > 3.5 * errors[1] > 3.5**2 * errors[2]


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_multistep_beats_first_order_at_10_steps(sampler: str, std: float) -> None:
    assert error(FlowProcess(), sampler, 10, std) < 0.5 * error(FlowProcess(), "euler", 10, std)
    assert error(DDPM, sampler, 10, std) < 0.8 * error(DDPM, "ddim", 10, std)


# DDPM is a random map, but with the best network a linear one: x0 = A start + sum B_k noise_k + C.
# One row per column of that map gives the distribution of the pictures without a single sample.


def distribution(process: DDPMProcess, network, steps: int, std: float) -> tuple[float, float]:
    """Mean and variance of the pictures that start at the exact marginal of the first step."""
    planned = plan(process, "ddpm", steps)
    rows = steps + 2  # nothing, the start, each noise
    start = torch.zeros(rows, 1, 1, 1)
    start[1] = 1
    draws = iter(range(2, rows))

    def noise(shape: torch.Size) -> Tensor:
        drawn = torch.zeros(shape)
        drawn[next(draws)] = 1
        return drawn

    found = run(planned, network, start, noise).flatten().double()
    slopes = found[1:] - found[0]
    a, s = powers(process, planned.evaluations[0])
    mean = found[0] + slopes[0] * a * MEAN
    variance = slopes[0] ** 2 * (a * a * std**2 + s * s) + (slopes[1:] ** 2).sum()
    return mean.item(), variance.item()


@pytest.mark.parametrize("steps", [5, 25, 250])
@pytest.mark.parametrize("std", [0.3, 0.8])
def test_ddpm_with_the_best_learned_variance_is_exact(steps: int, std: float) -> None:
    """The true reverse step is normal, so noise and variance learned to perfection leave no error.

    Only the last step, which returns the mean, drops the variance that x0 has given x_1.
    """
    process = DDPMProcess(learn_sigma=True)
    planned = plan(process, "ddpm", steps)
    abar = [1 - each.noise_level**2 for each in planned.evaluations]
    predict = best_network(DDPM, std)

    def network(x: Tensor, evaluation: Evaluation) -> Tensor:
        if evaluation.index == steps - 1:
            return torch.cat([predict(x, evaluation), torch.zeros_like(x)], dim=1)
        now, before = abar[evaluation.index], abar[evaluation.index + 1]
        beta = 1 - now / before
        spread = before * std**2 + 1 - before  # variance of the state before
        wanted = spread * beta / (now / before * spread + beta)  # Var(x_{t-1} | x_t)
        low, high = math.log(beta * (1 - before) / (1 - now)), math.log(beta)
        value = 2 * (math.log(wanted) - low) / (high - low) - 1
        assert -1 - 1e-6 <= value <= 1 + 1e-6
        return torch.cat([predict(x, evaluation), torch.full_like(x, value)], dim=1)

    mean, variance = distribution(process, network, steps, std)
    dropped = (1 - abar[-1]) * std**2 / (abar[-1] * std**2 + 1 - abar[-1])
    assert mean == pytest.approx(MEAN, abs=1e-4)
    assert variance == pytest.approx(std**2 - dropped, rel=1e-4)


@pytest.mark.parametrize("size", ["large", "small"])
def test_ddpm_with_fixed_variance_converges(size: str) -> None:
    """Too wide with the large variance, too narrow with the small one, right with many steps."""
    process = DDPMProcess(learn_sigma=False, fixed_variance=size)
    found = [distribution(process, best_network(process, 0.5), n, 0.5) for n in (10, 100, 1000)]
    errors = [variance / 0.5**2 - 1 for _, variance in found]
    assert all(error > 0 for error in errors[:2]) if size == "large" else max(errors) < 0
    assert abs(errors[0]) > 4 * abs(errors[1]) > 4 * 4 * abs(errors[2])
    assert found[2][0] == pytest.approx(MEAN, abs=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_finds_a_single_picture_for_any_eta(eta: float) -> None:
    """With one picture in the data every step keeps its predicted picture, whatever is added."""
    process = DDPM
    planned = plan(process, "ddim", 20, eta=eta)

    def network(x: Tensor, evaluation: Evaluation) -> Tensor:
        a, s = powers(process, evaluation)
        return (x - a * MEAN) / s

    generator = torch.Generator().manual_seed(0)
    drawn: list[Tensor] = []

    def noise(shape: torch.Size) -> Tensor:
        drawn.append(torch.randn(shape, generator=generator))
        return drawn[-1]

    seen: list[Tensor] = []

    def recorded(x: Tensor, evaluation: Evaluation) -> Tensor:
        seen.append(x)
        return network(x, evaluation)

    found = run(planned, recorded, torch.randn(1, 1, 64, 64, generator=generator), noise)
    assert len(drawn) == (0 if eta == 0 else 19)
    torch.testing.assert_close(found, torch.full_like(found, MEAN), rtol=0, atol=1e-4)
    for x, evaluation in zip(seen, planned.evaluations, strict=True):
        a, s = powers(process, evaluation)  # the states keep the marginals of the process
        assert ((x - a * MEAN) / s).std().item() == pytest.approx(1, abs=0.04)
