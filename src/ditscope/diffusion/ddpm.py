"""The DDPM noise process: its tables, forward noising, and the distribution of the step before.

Shapes: B rows, C channels, h and w the latent grid, T kept timesteps.

    q(x_t | x0)          = N(sqrt(abar_t) x0, 1 - abar_t)            abar = product of 1 - beta
    q(x_{t-1} | x_t, x0) = N(A_t x0 + B_t x_t, beta_t (1 - abar_{t-1}) / (1 - abar_t))

Written from Ho et al. (arXiv:2006.11239) and Nichol and Dhariwal (arXiv:2102.09672). diffusers'
`DDPMScheduler` and `DDIMScheduler` keep float32 tables: they agree with the published numbers to
5e-7 in one step, but drift to 2.5e-5 (DDPM) and 1.3e-5 (DDIM) over 25 steps (L2, relative). Float64
tables, cast after the lookup, give 0 and 1.2e-6 there; so the few lines below are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ditscope.errors import BadRequest


class DDPMProcess(BaseModel):
    """Linear betas, noise prediction, and a variance that is learned or fixed.

    With `learn_sigma` the network returns 2 C channels: the noise, then values v that place the
    log-variance between its lower bound (v = -1) and upper bound (v = 1). Without it the variance
    is `fixed_variance`: "large" is beta, "small" the variance of the true step before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["ddpm"] = "ddpm"
    num_timesteps: int = Field(default=1000, ge=2, le=100_000)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=2e-2, gt=0, lt=1)
    learn_sigma: bool = True
    fixed_variance: Literal["large", "small"] = "large"

    @model_validator(mode="after")
    def _noise_grows(self) -> DDPMProcess:
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} is below beta_start {self.beta_start}")
        return self

    def alphas_cumprod(self) -> Tensor:
        """Share of signal power left at every training timestep: (num_timesteps,), float64."""
        betas = torch.linspace(
            self.beta_start, self.beta_end, self.num_timesteps, dtype=torch.float64
        )
        return torch.cumprod(1 - betas, dim=0)

    def tables(self, timesteps: Sequence[int] | None = None) -> DDPMTables:
        """Coefficients of the process that visits only `timesteps` (ascending; None: all)."""
        kept = torch.tensor(range(self.num_timesteps) if timesteps is None else timesteps)
        abar = self.alphas_cumprod()[kept]
        before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        alphas = abar / before
        betas = 1 - alphas
        variance = betas * (1 - before) / (1 - abar)
        # The last step adds no noise; its zero is replaced so that the logarithm exists.
        clipped = torch.cat([variance[1:2], variance[1:]])
        upper = betas if self.learn_sigma else torch.cat([variance[1:2], betas[1:]])
        return DDPMTables(
            process=self,
            timesteps=kept,
            signal=abar.sqrt(),
            noise=(1 - abar).sqrt(),
            recip_signal=(1 / abar).sqrt(),
            noise_to_signal=(1 / abar - 1).sqrt(),
            mean_of_x0=betas * before.sqrt() / (1 - abar),
            mean_of_x=(1 - before) * alphas.sqrt() / (1 - abar),
            signal_before=before.sqrt(),
            noise_power_before=1 - before,
            variance=variance,
            log_variance_low=clipped.log(),
            log_variance_high=upper.log(),
        )

    def split(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """Predicted noise (B, C, h, w) and variance values (the same shape, or None if fixed).

        Both float32. Raises BadRequest if the network returns another number of channels.
        """
        expected = channels * 2 if self.learn_sigma else channels
        if output.shape[1] != expected:
            raise BadRequest(
                f"the network returned {output.shape[1]} channels for {channels} latent channels",
                field="learn_sigma",
                expected=f"{expected}, as the process has learn_sigma={self.learn_sigma}",
            )
        output = output.float()
        return output[:, :channels], output[:, channels:] if self.learn_sigma else None


@dataclass(frozen=True)
class DDPMTables:
    """Coefficients of every kept timestep, each (T,), made once in float64.

    Index 0 is the step that ends at the picture. `to` puts them on a device as float32, so that no
    step uploads anything; casting before or after the lookup gives the same numbers.
    """

    process: DDPMProcess
    timesteps: Tensor  # int64: what the network is told
    signal: Tensor  # sqrt(abar)
    noise: Tensor  # sqrt(1 - abar)
    recip_signal: Tensor  # sqrt(1 / abar)
    noise_to_signal: Tensor  # sqrt(1 / abar - 1)
    mean_of_x0: Tensor  # A above
    mean_of_x: Tensor  # B above
    signal_before: Tensor  # sqrt(abar) of the step before
    noise_power_before: Tensor  # 1 - abar of the step before
    variance: Tensor  # of the true step before; 0 at index 0
    log_variance_low: Tensor  # its logarithm, entry 0 repeated from entry 1
    log_variance_high: Tensor  # log(beta); with a fixed variance entry 0 is that of the low one

    def to(self, device: torch.device | str) -> DDPMTables:
        """The same tables on `device`, float32."""
        names = [field.name for field in fields(self) if field.name not in ("process", "timesteps")]
        moved = {name: getattr(self, name).to(device, torch.float32) for name in names}
        return replace(self, timesteps=self.timesteps.to(device), **moved)


@dataclass(frozen=True)
class Posterior:
    """What the network says of the step before: each (B, C, h, w) float32."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


def at(table: Tensor, t: Tensor) -> Tensor:
    """Entries of a table (T,) for the rows' indices (B,): (B, 1, 1, 1), float32."""
    return table[t].float().view(-1, 1, 1, 1)


def q_sample(tables: DDPMTables, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Noised latents x_t (B, C, h, w) at indices `t` (B,) of the tables."""
    return at(tables.signal, t) * x0 + at(tables.noise, t) * noise


def predict_x0(tables: DDPMTables, epsilon: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The picture (B, C, h, w) that `epsilon` (B, C, h, w) leaves of x_t."""
    return at(tables.recip_signal, t) * x - at(tables.noise_to_signal, t) * epsilon


def posterior(
    tables: DDPMTables, output: Tensor, x: Tensor, t: Tensor, *, clip_denoised: bool = False
) -> Posterior:
    """The distribution of the step before, from the network's output.

    Args:
        tables: of the kept timesteps, on the device of `x`.
        output: (B, C or 2 C, h, w), of the network at x_t.
        x: (B, C, h, w), x_t.
        t: (B,) indices into the tables.
        clip_denoised: clamp the predicted picture to [-1, 1]. Meant for pixels, not for latents.

    Raises:
        BadRequest: if the output has not the channels the process needs.
    """
    epsilon, values = tables.process.split(output, x.shape[1])
    x0 = predict_x0(tables, epsilon, x, t)
    if clip_denoised:
        x0 = x0.clamp(-1, 1)
    low, high = at(tables.log_variance_low, t), at(tables.log_variance_high, t)
    if values is not None:
        share = (values + 1) / 2  # not clamped: a network may leave [-1, 1]
        log_variance = share * high + (1 - share) * low
    else:
        fixed = high if tables.process.fixed_variance == "large" else low
        log_variance = fixed.expand_as(x)
    mean = at(tables.mean_of_x0, t) * x0 + at(tables.mean_of_x, t) * x
    return Posterior(mean=mean, log_variance=log_variance, x0=x0)
