"""What a training is: one frozen value, saved with the run and read back as it was."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.flow import FlowProcess
from ditscope.model.config import DiTConfig

Process = Annotated[DDPMProcess | FlowProcess, Field(discriminator="kind")]


class TrainConfig(BaseModel):
    """Everything that decides the weights, bit for bit on one kind of machine.

    What `RESUMABLE_CHANGES` names may be changed when a training is resumed; nothing else may.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Literal["emoji"] = "emoji"
    model: DiTConfig
    process: Process
    seed: NonNegativeInt = 0

    batch_size: PositiveInt = 64
    steps: PositiveInt = 10_000
    coarse_steps: NonNegativeInt = 0  # first steps, with patches twice as large (see coarse.py)
    precision: Literal["bf16", "fp32"] = "bf16"

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: block matrices only, adamw the rest
    learning_rate: float = Field(default=1e-4, gt=0)
    matrix_learning_rate: float = Field(default=1e-3, gt=0)  # muon's, matched to AdamW's RMS
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: NonNegativeInt = 200
    decay_steps: NonNegativeInt = 0  # last steps, in which the rate falls linearly to zero
    clip_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    level_mean: float = 0.0  # logit-normal noise levels of a flow
    level_std: float = Field(default=1.0, gt=0)

    max_skipped: NonNegativeInt = 0  # steps that may be left out because of NaN or Inf
    log_every: PositiveInt = 20
    save_every: PositiveInt = 500

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.coarse_steps > self.steps:
            raise ValueError(f"coarse_steps {self.coarse_steps} is more than steps {self.steps}")
        if self.coarse_steps and any(side % 2 for side in self.model.grid):
            raise ValueError("coarse_steps needs an even number of patches each way")
        if self.process.kind == "ddpm" and self.process.learn_sigma != self.model.learn_sigma:
            raise ValueError("process.learn_sigma and model.learn_sigma differ")
        if self.process.kind == "flow" and self.model.learn_sigma:
            raise ValueError("a flow has no variance: model.learn_sigma must be false")
        return self

    def rate(self, step: int) -> float:
        """Share of the learning rate at `step`: warm-up, plateau, linear decay to zero."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        fall = min(1.0, (self.steps - step) / (self.decay_steps + 1))
        return rise * fall


RESUMABLE_CHANGES = frozenset({"steps", "decay_steps", "log_every", "save_every", "max_skipped"})
