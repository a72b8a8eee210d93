"""The loss of a batch under each noise process, apart from the random numbers it is taken at.

A batch is made noisy as a whole and then split, so that the numbers do not depend on how many rows
the network sees at once.

Shapes: B rows, C channels, h and w the latent grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ditscope.diffusion.ddpm import DDPMProcess, DDPMTables, q_sample
from ditscope.diffusion.flow import FlowProcess
from ditscope.diffusion.losses import ddpm_loss
from ditscope.train.config import TrainConfig

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (B, C, h, w), timestep (B,), labels (B,)) -> (B, C_out, h, w)."""


@dataclass(frozen=True)
class NoisyBatch:
    """All that the loss of a batch depends on but the network."""

    x0: Tensor  # (B, C, h, w)
    y: Tensor  # (B,) labels, some of them the null class
    level: Tensor  # (B,) noise level of a flow, or timestep index of a DDPM
    noise: Tensor  # (B, C, h, w)

    def rows(self, first: int, last: int) -> NoisyBatch:
        """Rows `first` to `last - 1`."""
        parts = (self.x0, self.y, self.level, self.noise)
        return NoisyBatch(*(part[first:last] for part in parts))


class Objective:
    """Draws the random numbers of a batch, and takes its loss."""

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        process = config.process
        self.tables = process.tables().to(device) if isinstance(process, DDPMProcess) else None

    def draw(self, x0: Tensor, y: Tensor, rows: range | None = None) -> NoisyBatch:
        """Noise levels, noise and dropped labels for x0 (B, C, h, w) and y (B,).

        The numbers come from the global generator of the CPU, in this order. With `rows`, x0 and y
        are those rows of a batch, and get the numbers that they have in the whole of it.
        """
        total = len(x0) if rows is None else self.config.batch_size
        mine = slice(None) if rows is None else slice(rows.start, rows.stop)
        levels = self._levels(total)[mine]
        noise = torch.randn(total, *x0.shape[1:])[mine]
        if self.config.model.class_dropout_prob > 0:
            dropped = (torch.rand(total) < self.config.model.class_dropout_prob)[mine]
            y = torch.where(dropped.to(y.device), self.config.model.null_label, y)
        return NoisyBatch(x0, y, levels.to(x0.device), noise.to(x0.device))

    def losses(self, network: Network, batch: NoisyBatch) -> Tensor:
        """The loss of every row: (B,) float32."""
        process = self.config.process
        if isinstance(process, FlowProcess):
            return flow_losses(process, network, batch)
        assert self.tables is not None
        return _ddpm_losses(self.tables, network, batch)

    def _levels(self, rows: int) -> Tensor:
        """Noise levels in (0, 1) of a flow, or timestep indices of a DDPM: (rows,)."""
        config, process = self.config, self.config.process
        if config.sampling == "uniform":
            if isinstance(process, FlowProcess):
                return torch.rand(rows)
            return torch.randint(process.num_timesteps, (rows,))
        levels = torch.sigmoid(config.level_mean + config.level_std * torch.randn(rows))
        if isinstance(process, FlowProcess):
            return levels
        return (levels * process.num_timesteps).long().clamp_max(process.num_timesteps - 1)


def flow_losses(process: FlowProcess, network: Network, batch: NoisyBatch) -> Tensor:
    """Mean squared error of the velocity, whatever the network predicts."""
    x0, noise, levels = batch.x0, batch.noise, batch.level
    x = process.add_noise(x0, noise, levels)  # (B, C, h, w)
    output = network(x, levels * process.time_scale, batch.y).float()
    if process.prediction == "velocity":
        error = output - (noise - x0)
    else:  # both velocities divided by the same, clamped, level
        error = process.velocity(output, x, levels) - process.velocity(x0, x, levels)
    return error.square().flatten(1).mean(dim=1)


def _ddpm_losses(tables: DDPMTables, network: Network, batch: NoisyBatch) -> Tensor:
    t = batch.level
    x = q_sample(tables, batch.x0, t, batch.noise)
    return ddpm_loss(tables, network(x, t, batch.y), batch.x0, x, t, batch.noise).loss
