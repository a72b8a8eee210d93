"""The loss of one batch under each noise process.

Shapes: B rows, C channels, h and w the latent grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ditscope.diffusion.ddpm import DDPMTables, q_sample
from ditscope.diffusion.flow import FlowProcess
from ditscope.diffusion.losses import ddpm_loss
from ditscope.train.config import TrainConfig

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, x0 (B, C, h, w), labels (B,)) -> loss of every sample (B,), float32."""


def objective(config: TrainConfig, device: torch.device | str = "cpu") -> Objective:
    """The objective of a configuration; its noise comes from the global generator."""
    process = config.process
    if isinstance(process, FlowProcess):

        def flow(model: nn.Module, x0: Tensor, y: Tensor) -> Tensor:
            levels = torch.sigmoid(config.level_mean + config.level_std * torch.randn(len(x0)))
            return flow_losses(process, model, x0, y, levels.to(device), torch.randn_like(x0))

        return flow
    schedule = process.tables().to(device)
    return lambda model, x0, y: _ddpm_losses(schedule, model, x0, y)


def flow_losses(
    process: FlowProcess, model: nn.Module, x0: Tensor, y: Tensor, levels: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the velocity at noise levels (B,), whatever the network predicts."""
    x = process.add_noise(x0, noise, levels)  # (B, C, h, w)
    output = model(x, levels * process.time_scale, y).float()
    if process.prediction == "velocity":
        error = output - (noise - x0)
    else:  # both velocities divided by the same, clamped, level
        error = process.velocity(output, x, levels) - process.velocity(x0, x, levels)
    return error.square().flatten(1).mean(dim=1)


def _ddpm_losses(schedule: DDPMTables, model: nn.Module, x0: Tensor, y: Tensor) -> Tensor:
    t = torch.randint(schedule.process.num_timesteps, (len(x0),)).to(x0.device)
    noise = torch.randn_like(x0)
    x = q_sample(schedule, x0, t, noise)
    return ddpm_loss(schedule, model(x, t, y), x0, x, t, noise).loss
