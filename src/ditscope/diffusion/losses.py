"""The published DDPM training loss: noise error plus the variational bound of the variance.

Shapes: B rows, C channels, h and w the latent grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ditscope.diffusion.ddpm import DDPMTables, at, posterior

HALF_BIN = 1 / 255
"""Half the width of one of 256 grey values on [-1, 1]."""
OPEN_END = 0.999
"""Beyond this the bin of a value reaches to infinity."""
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class DDPMLoss:
    """Per sample, (B,): `loss = mse + vb`. `vb` is None where the variance is not learned."""

    loss: Tensor
    mse: Tensor
    vb: Tensor | None  # bits per dimension


def ddpm_loss(
    tables: DDPMTables, output: Tensor, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor
) -> DDPMLoss:
    """The loss of Nichol and Dhariwal (arXiv:2102.09672, eq. 16), not rescaled.

    The bound trains only the variance: it sees the predicted noise detached. At index 0 it is the
    likelihood of 8-bit values, as published, although latents are not 8-bit values.

    Args:
        tables: of the training timesteps, on the device of `x0`.
        output: (B, C or 2 C, h, w), of the network at `x`.
        x0: (B, C, h, w), clean latents.
        x: (B, C, h, w), `q_sample(tables, x0, t, noise)`.
        t: (B,) indices into the tables.
        noise: (B, C, h, w), what `x` was made with.

    Raises:
        BadRequest: if the output has not the channels the process needs.
    """
    epsilon, values = tables.process.split(output, x.shape[1])
    mse = _per_sample((noise - epsilon) ** 2)
    if values is None:
        return DDPMLoss(loss=mse, mse=mse, vb=None)
    frozen = torch.cat([epsilon.detach(), values], dim=1)
    model = posterior(tables, frozen, x, t)
    true_mean = at(tables.mean_of_x0, t) * x0 + at(tables.mean_of_x, t) * x
    divergence = _gaussian_kl(
        true_mean, at(tables.log_variance_low, t), model.mean, model.log_variance
    )
    surprise = _eight_bit_nll(x0, model.mean, 0.5 * model.log_variance)
    nats = torch.where(t == 0, _per_sample(surprise), _per_sample(divergence))
    vb = nats / math.log(2)
    return DDPMLoss(loss=mse + vb, mse=mse, vb=vb)


def _per_sample(x: Tensor) -> Tensor:
    """Mean over all axes but the first: (B, ...) -> (B,)."""
    return x.flatten(1).mean(dim=1)


def _gaussian_kl(mean_p: Tensor, log_var_p: Tensor, mean_q: Tensor, log_var_q: Tensor) -> Tensor:
    """KL(p || q) of two normal distributions, elementwise, in nats."""
    ratio = (log_var_p - log_var_q).exp()
    distance = (mean_p - mean_q) ** 2 * (-log_var_q).exp()
    return 0.5 * (log_var_q - log_var_p + ratio + distance - 1)


def _eight_bit_nll(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """-log of the probability that N(mean, std) gives to the grey value of `x`, in nats."""
    inverse = (-log_std).exp()
    above = _normal_cdf((x - mean + HALF_BIN) * inverse)
    below = _normal_cdf((x - mean - HALF_BIN) * inverse)
    above = torch.where(x > OPEN_END, torch.ones_like(above), above)
    below = torch.where(x < -OPEN_END, torch.zeros_like(below), below)
    return -(above - below).clamp_min(SMALLEST_PROBABILITY).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the standard normal distribution function (Page, 1977)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
