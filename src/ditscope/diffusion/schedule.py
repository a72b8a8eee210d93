"""What a sampler will do, known before it starts: every evaluation of the network, in order.

Shapes: B rows, C channels, h and w the latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ditscope.diffusion.ddpm import DDPMProcess, DDPMTables
from ditscope.diffusion.flow import FlowProcess


@dataclass(frozen=True)
class Evaluation:
    """One call of the network. Guidance branches of one state are one evaluation."""

    index: int
    solver_step: int
    evaluation: int  # within the solver step: 1 only for the second stage of a two-stage solver
    timestep: float  # what the network is told
    noise_level: float  # share of noise: s of a flow, sqrt(1 - alpha_bar) of DDPM


Denoise = Callable[[Tensor, Evaluation], Tensor]
"""State (B, C, h, w) float32 and evaluation -> the network's raw output (B, C or 2 C, h, w)."""

Noise = Callable[[Sequence[int]], Tensor]
"""Shape (B, C, h, w) -> standard normal numbers, each row from its own generator."""


Trajectory = Generator[tuple[Tensor, Evaluation], Tensor, Tensor]
"""One way from noise to picture (B, C, h, w): it yields every state with its evaluation, is sent
the network's raw output, and returns the picture. So several can go on in step with each other."""


@dataclass(frozen=True)
class SamplerPlan:
    """A sampler with all its choices made and all its evaluations listed."""

    process: DDPMProcess | FlowProcess
    sampler: str
    steps: int  # solver steps
    evaluations: tuple[Evaluation, ...]
    eta: float = 0.0  # ddim: share of the noise that DDPM would add
    clip_denoised: bool = False
    respacing: str | None = None  # name of the list of kept timesteps: ddpm and ddim
    tables: DDPMTables | None = None  # of the kept timesteps; None for a flow

    @property
    def options(self) -> dict[str, object]:
        """The choices beside sampler and steps, as plain data for a manifest."""
        chosen: dict[str, object] = {"clip_denoised": self.clip_denoised}
        if self.respacing is not None:
            chosen["respacing"] = self.respacing
        if self.sampler == "ddim":
            chosen["eta"] = self.eta
        return chosen

    def picture(self, output: Tensor, x: Tensor, evaluation: Evaluation) -> Tensor:
        """The clean latent (B, C, h, w) that the raw `output` at state `x` stands for.

        Raises BadRequest if the output has not the channels the process needs.
        """
        if isinstance(self.process, DDPMProcess):
            assert self.tables is not None
            epsilon, _ = self.process.split(output, x.shape[1])
            row = self.steps - 1 - evaluation.solver_step
            signal, noise = self.tables.recip_signal[row], self.tables.noise_to_signal[row]
            x0 = signal.item() * x - noise.item() * epsilon
        elif self.process.prediction == "velocity":
            x0 = x - evaluation.noise_level * output.float()
        else:
            x0 = output.float()
        return x0.clamp(-1, 1) if self.clip_denoised else x0
