"""What the golden losses do not show: the first loss, what the bound trains, fixed variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ditscope.diffusion.ddpm import DDPMProcess, q_sample
from ditscope.diffusion.losses import ddpm_loss
from ditscope.errors import BadRequest


def draw(rows: int, *, t: torch.Tensor | None = None):
    """(x0, x, t, noise) with N(0, 1) latents (rows, 4, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(rows, 4, 8, 8, generator=generator)
    noise = torch.randn(rows, 4, 8, 8, generator=generator)
    if t is None:
        t = torch.arange(rows) * 1000 // rows
    return x0, q_sample(DDPMProcess().tables(), x0, t, noise), t, noise


def test_an_untrained_network_starts_at_1_016() -> None:
    """Output zero on N(0, 1) latents, every timestep once: noise error 1 and few bits of bound.

    The bits are expected in closed form: zero output leaves the noise in the predicted picture and
    puts the log-variance half way. One batch scatters around the mean (index 0 alone costs 2 bits
    in one case of a thousand): 1.013 has been seen, 1.016 is the expectation.
    """
    x0, x, t, noise = draw(1000)
    found = ddpm_loss(DDPMProcess().tables(), torch.zeros(1000, 8, 8, 8), x0, x, t, noise)
    assert found.vb is not None
    betas = np.linspace(1e-4, 2e-2, 1000)
    abar = np.cumprod(1 - betas)
    beta, abar, before = betas[1:], abar[1:], abar[:-1]
    true = beta * (1 - before) / (1 - abar)
    shift = beta**2 * before / (1 - abar) / abar  # expected square of the error of the mean
    model = np.sqrt(true * beta)
    nats = 0.5 * (np.log(model / true) + true / model + shift / model - 1)
    bits = nats / np.log(2)
    assert bits.mean() == pytest.approx(0.0142, abs=0.0001)
    assert found.vb[1:].double().mean().item() == pytest.approx(bits.mean(), rel=0.02)
    assert found.mse.mean().item() == pytest.approx(1.000, abs=0.005)
    assert found.loss.mean().item() == pytest.approx(1.016, abs=0.005)


def test_the_bound_trains_only_the_variance() -> None:
    x0, x, t, noise = draw(4)
    output = torch.zeros(4, 8, 8, 8, requires_grad=True)
    vb = ddpm_loss(DDPMProcess().tables(), output, x0, x, t, noise).vb
    assert vb is not None
    (gradient,) = torch.autograd.grad(vb.sum(), output)
    assert gradient[:, :4].abs().max() == 0
    assert (gradient[:, 4:].flatten(1).abs().amax(1) > 0).all()


def test_a_perfect_network_has_no_error_and_the_least_bound() -> None:
    """True noise and v = -1 (the true variance) make every KL term 0; any other v costs bits."""
    x0, x, t, noise = draw(3, t=torch.tensor([1, 2, 9]))
    tables = DDPMProcess().tables()
    value = torch.ones_like(noise)
    perfect = ddpm_loss(tables, torch.cat([noise, -value], 1), x0, x, t, noise)
    wrong = ddpm_loss(tables, torch.cat([noise, -0.5 * value], 1), x0, x, t, noise)
    assert perfect.vb is not None and wrong.vb is not None
    assert perfect.mse.abs().max() == 0
    assert perfect.vb.abs().max() < 1e-6
    assert (wrong.vb > perfect.vb).all()


def test_the_last_step_is_the_likelihood_of_grey_values() -> None:
    """Against the exact normal distribution function; the published formula approximates it."""
    x0, x, t, noise = draw(1, t=torch.tensor([0]))
    x0[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])  # open ends
    tables = DDPMProcess().tables()
    x = q_sample(tables, x0, t, noise)
    found = ddpm_loss(tables, torch.cat([noise, torch.ones_like(noise)], 1), x0, x, t, noise).vb
    assert found is not None
    std = 1e-2  # v = 1: variance beta_0 = 1e-4; the true noise makes the mean x0 itself
    half = math.erf(1 / 255 / std / math.sqrt(2))
    probability = torch.full_like(x0, half, dtype=torch.float64)
    probability[x0.abs() > 0.999] = 0.5 + half / 2
    expected = -probability.log2().mean()
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)


def test_without_learned_variance_the_loss_is_the_noise_error() -> None:
    process = DDPMProcess(learn_sigma=False)
    x0, x, t, noise = draw(2)
    found = ddpm_loss(process.tables(), torch.zeros_like(x), x0, x, t, noise)
    assert found.vb is None and torch.equal(found.loss, found.mse)
    with pytest.raises(BadRequest, match="learn_sigma"):
        ddpm_loss(process.tables(), torch.zeros(2, 8, 8, 8), x0, x, t, noise)
