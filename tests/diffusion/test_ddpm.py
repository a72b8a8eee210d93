"""Tables, noising and single steps: golden numbers first, then closed forms for the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ditscope.diffusion.ancestral import ddim_step, ddpm_step
from ditscope.diffusion.ddpm import DDPMProcess, DDPMTables, posterior, q_sample
from ditscope.diffusion.losses import ddpm_loss
from ditscope.diffusion.respacing import respace
from ditscope.errors import BadRequest

TABLES = json.loads((Path(__file__).parents[1] / "golden" / "dit_tables.json").read_text())
FILES = ["diffusion_1000", "diffusion_respaced250"]


def assert_rows_close(found: Tensor, expected: Tensor, rel: float = 5e-6) -> None:
    """Per row: max |error| <= rel * max |expected|."""
    assert found.dtype == torch.float32
    error = (found - expected).flatten(1).abs().amax(1)
    assert (error <= rel * expected.flatten(1).abs().amax(1)).all(), error


def prepared(golden, name: str) -> tuple[dict[str, Tensor], DDPMTables]:
    tensors, metadata = golden(name)
    return tensors, DDPMProcess().tables(respace(metadata["respacing"], 1000))


def test_alpha_bar() -> None:
    abar = DDPMProcess().alphas_cumprod()
    assert abar.dtype == torch.float64
    expected = {0: 0.9999, 250: 0.5214230306, 500: 0.0777966584, 999: 4.035829765e-05}
    for t, value in expected.items():
        assert abar[t].item() == pytest.approx(value, rel=1e-9)
    respaced = DDPMProcess().tables(TABLES["respaced_250"]["timestep_map"])
    ends = [respaced.signal[0].item() ** 2, respaced.signal[-1].item() ** 2]
    assert ends == pytest.approx(TABLES["respaced_250"]["alphas_cumprod_first_last"], rel=1e-12)
    assert DDPMProcess().tables().log_variance_low[0].item() == pytest.approx(-9.816725, abs=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_posterior_equals_golden(golden, name: str) -> None:
    g, tables = prepared(golden, name)
    found = posterior(tables, g["in.model_output"], g["in.x_t"], g["in.t_index"])
    assert_rows_close(found.mean, g["out.mean"])
    assert_rows_close(found.x0, g["out.pred_xstart"])
    assert_rows_close(found.log_variance.exp(), g["out.variance"])
    assert (found.log_variance - g["out.log_variance"]).abs().max() <= 5e-6


@pytest.mark.parametrize("name", FILES)
def test_steps_equal_golden(golden, name: str) -> None:
    g, tables = prepared(golden, name)
    args = (tables, g["in.model_output"], g["in.x_t"], g["in.t_index"])
    assert_rows_close(ddpm_step(*args, g["in.p_sample_noise"]), g["out.p_sample"])
    assert_rows_close(ddim_step(*args, None), g["out.ddim_sample_eta0"])


@pytest.mark.parametrize("name", FILES)
def test_noising_and_losses_equal_golden(golden, name: str) -> None:
    g, tables = prepared(golden, name)
    x0, noise, t = g["in.x_start"], g["in.noise"], g["in.t_index"]
    x = q_sample(tables, x0, t, noise)
    assert_rows_close(x, g["out.q_sample"])
    found = ddpm_loss(tables, g["in.model_output"], x0, x, t, noise)
    torch.testing.assert_close(found.mse, g["out.loss_mse"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.vb, g["out.loss_vb"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.loss, g["out.loss_loss"], rtol=1e-5, atol=0)


def test_tables_on_a_device_give_the_same_bits(golden) -> None:
    """Casting before the lookup (the sampler) and after it (the tests above) is one thing."""
    g, tables = prepared(golden, "diffusion_respaced250")
    args = (g["in.model_output"], g["in.x_t"], g["in.t_index"])
    wide, narrow = posterior(tables, *args), posterior(tables.to("cpu"), *args)
    assert torch.equal(wide.mean, narrow.mean)
    assert torch.equal(wide.log_variance, narrow.log_variance)


# What the golden files do not cover: fixed variance, clipping, eta > 0. The closed forms below are
# written from the betas in numpy float64, not from the tables under test.

T = torch.tensor([0, 1, 400, 999])


def closed_form(t: int) -> tuple[float, float, float]:
    """(beta, abar, abar of the step before) of the full linear schedule."""
    betas = np.linspace(1e-4, 2e-2, 1000)
    abar = np.cumprod(1 - betas)
    return float(betas[t]), float(abar[t]), float(abar[t - 1]) if t else 1.0


def state(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(x, network output, noise), each (4, 2, 3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(4, 2, 3, 3, generator=generator) for _ in range(3))


@pytest.mark.parametrize("size", ["large", "small"])
def test_fixed_variance(size: str) -> None:
    tables = DDPMProcess(learn_sigma=False, fixed_variance=size).tables()
    x, output, noise = state()
    found = posterior(tables, output, x, T).log_variance
    first_beta, second_abar, second_before = closed_form(1)
    smallest = first_beta * (1 - second_before) / (1 - second_abar)
    for row, t in enumerate(T.tolist()):
        beta, abar, before = closed_form(t)
        true = beta * (1 - before) / (1 - abar)
        expected = smallest if t == 0 else beta if size == "large" else true
        assert found[row].exp().double().numpy() == pytest.approx(expected, rel=1e-5)
    step = ddpm_step(tables, output, x, T, noise)
    mean = posterior(tables, output, x, T).mean
    assert torch.equal(step[0], mean[0])
    added = (step - mean)[1:] / noise[1:]
    torch.testing.assert_close(added, (0.5 * found[1:]).exp(), rtol=2e-3, atol=1e-6)


def test_fixed_variance_keeps_the_marginals_it_is_exact_for() -> None:
    """For one fixed picture "small" is the true variance, for N(0, 1) data "large" is.

    The exact step then maps the marginal of x_t to that of x_{t-1}: mean and variance are carried
    over with no error, which neither size does for the data of the other.
    """
    x = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1, 1)
    for t in (1, 400, 999):
        _, abar, before = closed_form(t)
        index = torch.full((3,), t)
        # One picture, m = 0.7: the exact noise prediction is (x - sqrt(abar) m) / sqrt(1 - abar).
        m = 0.7
        small = DDPMProcess(learn_sigma=False, fixed_variance="small").tables()
        step = posterior(small, (x - abar**0.5 * m) / (1 - abar) ** 0.5, x, index)
        slope = ((step.mean[2] - step.mean[0]) / 3).item()
        at_mean = step.mean[1].item() + slope * abar**0.5 * m
        assert at_mean == pytest.approx(before**0.5 * m, rel=1e-4)
        variance = slope**2 * (1 - abar) + step.log_variance[0].exp().item()
        assert variance == pytest.approx(1 - before, rel=1e-4)
        # N(0, 1) data: x_t is N(0, 1) at every t and the exact noise prediction sqrt(1 - abar) x.
        large = DDPMProcess(learn_sigma=False, fixed_variance="large").tables()
        step = posterior(large, (1 - abar) ** 0.5 * x, x, index)
        slope = ((step.mean[2] - step.mean[0]) / 3).item()
        assert slope**2 + step.log_variance[0].exp().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_step_against_its_formula(eta: float) -> None:
    """Song et al. (arXiv:2010.02502, eq. 12 and 16), in float64."""
    tables = DDPMProcess(learn_sigma=False).tables()
    x, output, noise = state(1)
    found = ddim_step(tables, output, x, T, noise, eta)
    for row, t in enumerate(T.tolist()):
        _, abar, before = closed_form(t)
        x0 = (x[row].double() - (1 - abar) ** 0.5 * output[row].double()) / abar**0.5
        sigma = eta * ((1 - before) / (1 - abar)) ** 0.5 * (1 - abar / before) ** 0.5
        direction = (1 - before - sigma**2) ** 0.5 * output[row].double()
        expected = before**0.5 * x0 + direction + sigma * noise[row].double()
        error = (found[row].double() - expected).abs().max() / expected.abs().max()
        assert error < 5e-6


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance() -> None:
    tables = DDPMProcess(learn_sigma=False, fixed_variance="small").tables(respace("50", 1000))
    x, output, noise = state(2)
    t = torch.tensor([0, 1, 20, 49])
    ancestral = ddpm_step(tables, output, x, t, noise)
    assert_rows_close(ddim_step(tables, output, x, t, noise, 1.0), ancestral)


def test_clip_denoised_moves_mean_and_direction() -> None:
    tables = DDPMProcess(learn_sigma=False).tables()
    x, output, _ = state(3)
    clipped = posterior(tables, output, x, T, clip_denoised=True)
    free = posterior(tables, output, x, T)
    assert torch.equal(clipped.x0, free.x0.clamp(-1, 1)) and not torch.equal(clipped.x0, free.x0)
    ddim = ddim_step(tables, output, x, T, None, clip_denoised=True)
    for row, t in enumerate(T.tolist()):
        beta, abar, before = closed_form(t)
        x0 = clipped.x0[row].double()
        wide = x[row].double()
        mean = (beta * before**0.5 * x0 + (1 - before) * (1 - beta) ** 0.5 * wide) / (1 - abar)
        torch.testing.assert_close(clipped.mean[row].double(), mean, rtol=1e-5, atol=1e-5)
        epsilon = (wide - abar**0.5 * x0) / (1 - abar) ** 0.5
        moved = before**0.5 * x0 + (1 - before) ** 0.5 * epsilon
        torch.testing.assert_close(ddim[row].double(), moved, rtol=1e-5, atol=1e-5)


def test_wrong_number_of_channels_is_refused() -> None:
    x = torch.zeros(1, 4, 2, 2)
    t = torch.tensor([5])
    with pytest.raises(BadRequest, match="returned 4 channels for 4 latent channels"):
        posterior(DDPMProcess().tables(), torch.zeros(1, 4, 2, 2), x, t)
    with pytest.raises(BadRequest, match="returned 8 channels"):
        posterior(DDPMProcess(learn_sigma=False).tables(), torch.zeros(1, 8, 2, 2), x, t)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_timesteps": 1},
        {"beta_start": 0.0},
        {"beta_end": 1.0},
        {"beta_start": 0.03},
        {"beta_end": float("nan")},
        {"fixed_variance": "medium"},
        {"steps": 10},
    ],
)
def test_bad_process(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DDPMProcess(**fields)
