"""Classifier-free guidance: a wrapper around a network that turns it into a `denoise`.

Shapes: B rows (samples), C channels, h and w the latent grid.

    guided = uncond + scale * (cond - uncond)          Ho and Salimans, arXiv:2207.12598
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ditscope.core.axes import Branch
from ditscope.diffusion.schedule import Denoise, Evaluation
from ditscope.errors import BadRequest


class Network(Protocol):
    """A network that is told which branches are stacked in its batch."""

    def __call__(
        self,
        x: Tensor,
        timestep: float,
        labels: Tensor,
        evaluation: Evaluation,
        branches: tuple[Branch, ...],
    ) -> Tensor:
        """Rows (branches * B, C, h, w), branch by branch, and labels -> raw output."""
        ...


def branches_at(
    evaluation: Evaluation, scale: float, interval: tuple[float, float] | None
) -> tuple[Branch, ...]:
    """The branches that are evaluated, in batch order: one if guidance is off here.

    It is off everywhere for scale 1, and at noise levels outside `interval` (both ends belong to
    it; arXiv:2404.07724).
    """
    if scale == 1 or (interval and not interval[0] <= evaluation.noise_level <= interval[1]):
        return ("cond",)
    return ("cond", "uncond")


def guide(
    network: Network,
    labels: Tensor,
    null_label: int,
    scale: float,
    *,
    channels: int | None = None,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """`denoise` that evaluates both branches in one batch and combines them.

    Args:
        network: called once per evaluation.
        labels: (B,) int64, one per sample, on the network's device.
        null_label: label of the unconditional branch.
        scale: 1 is no guidance, 0 the unconditional branch alone.
        channels: how many latent channels are guided, the first ones. None: all of them. The
            published scripts guide 3 of 4, so their scales need `channels=3` for the same pictures.
            The other channels, and learned variances, are those of the conditional branch.
        interval: noise levels (0 to 1) at which guidance is on; no unconditional pass elsewhere.

    Raises:
        BadRequest: for a scale, interval or number of channels out of range.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise BadRequest(f"found {scale}", field="cfg_scale", expected="a number >= 0")
    if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
        raise BadRequest(
            f"found {interval}",
            field="cfg_interval",
            expected="two noise levels, 0 <= low <= high <= 1",
        )
    nulls = torch.full_like(labels, null_label)

    def denoise(x: Tensor, evaluation: Evaluation) -> Tensor:
        guided = x.shape[1] if channels is None else channels
        if not 1 <= guided <= x.shape[1]:
            raise BadRequest(
                f"found {guided}", field="cfg_channels", expected=f"1 to {x.shape[1]}, the latent's"
            )
        branches = branches_at(evaluation, scale, interval)
        if len(branches) == 1:
            return network(x, evaluation.timestep, labels, evaluation, branches)
        stacked = network(
            torch.cat([x, x]),
            evaluation.timestep,
            torch.cat([labels, nulls]),
            evaluation,
            branches,
        )
        cond, uncond = stacked.float().chunk(2)
        mixed = uncond[:, :guided] + scale * (cond[:, :guided] - uncond[:, :guided])
        return torch.cat([mixed, cond[:, guided:]], dim=1)

    return denoise
