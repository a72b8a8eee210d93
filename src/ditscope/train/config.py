"""What a training is: one frozen value, saved with the run and read back as it was."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from ditscope.data.codecs import RGB, Latent
from ditscope.data.records import RecordSettings
from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.flow import FlowProcess
from ditscope.errors import BadConfig
from ditscope.model.config import DiTConfig

Process = Annotated[DDPMProcess | FlowProcess, Field(discriminator="kind")]
Codec = Annotated[RGB | Latent, Field(discriminator="kind")]


class TrainConfig(BaseModel):
    """Everything that decides the weights, bit for bit on one kind of machine.

    What `RESUMABLE_CHANGES` names may be changed when a training is resumed; nothing else may.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str = "emoji"  # or the path of class folders, latents or shards, or hf:NAME
    data_digest: str | None = None  # of the files, or the commit: they must stay as they were
    labels: tuple[str, ...] = ()  # class names by index; empty: those of the emoji scenes
    flip: bool = True  # mirror half of the pictures of a folder
    max_bad_pictures: NonNegativeInt = 100
    model: DiTConfig
    process: Process
    records: RecordSettings = RecordSettings()  # of a `datasets` source
    codec: Codec = RGB()  # what the latents of the data are; pictures are their own
    init: str | None = None  # weights to begin with (see start.py)
    init_digest: str | None = None
    seed: NonNegativeInt = 0

    batch_size: PositiveInt = 64
    steps: PositiveInt = 10_000
    coarse_steps: NonNegativeInt = 0  # first steps, with patches twice as large (see coarse.py)
    precision: Literal["bf16", "fp32"] = "bf16"
    accumulate: PositiveInt = 1  # parts that a batch is computed in, one after the other
    grad_checkpoint: bool = False  # compute each block again in the backward pass
    compile: bool = False  # make a program of the blocks (torch.compile)

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: block matrices only, adamw the rest
    learning_rate: float = Field(default=1e-4, gt=0)
    matrix_learning_rate: float = Field(default=1e-3, gt=0)  # muon's, matched to AdamW's RMS
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up
    warmup_steps: NonNegativeInt = 200
    decay_steps: NonNegativeInt = 0  # linear: last steps, in which the rate falls to zero
    clip_norm: float = Field(default=1.0, ge=0)  # 0: gradients are not clipped
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    ema_ramp: bool = True  # look back over at most a tenth of the steps so far
    timestep_sampling: Literal["auto", "uniform", "logit-normal"] = "auto"  # auto: see `sampling`
    level_mean: float = 0.0  # of the normal distribution under a logit-normal one
    level_std: float = Field(default=1.0, gt=0)

    max_skipped: NonNegativeInt = 0  # steps that may be left out because of NaN or Inf
    log_every: PositiveInt = 20
    save_every: PositiveInt = 500
    snapshot_every: NonNegativeInt = 0  # steps between snapshots of two averages; 0: never
    preview_every: NonNegativeInt = 0  # steps between pictures of the averaged weights; 0: never
    health_every: NonNegativeInt = 0  # steps between looks at the attention; 0: never
    tensorboard: bool = False  # the numbers of the log as curves for TensorBoard, too

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.coarse_steps > self.steps:
            raise BadConfig(
                f"found {self.coarse_steps}, more than steps {self.steps}",
                field="coarse_steps",
                fix="--set coarse_steps=0 leaves the coarse stage out, a number makes it shorter",
            )
        if self.coarse_steps and any(side % 2 for side in self.model.grid):
            raise ValueError("coarse_steps needs an even number of patches each way")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}"
            )
        if self.labels and len(self.labels) != self.model.num_classes:
            raise ValueError(
                f"{len(self.labels)} labels for model.num_classes {self.model.num_classes}"
            )
        if self.process.kind == "ddpm" and self.process.learn_sigma != self.model.learn_sigma:
            raise ValueError("process.learn_sigma and model.learn_sigma differ")
        if self.process.kind == "flow" and self.model.learn_sigma:
            raise ValueError("a flow has no variance: model.learn_sigma must be false")
        return self

    @property
    def sampling(self) -> Literal["uniform", "logit-normal"]:
        """How noise levels are drawn: unless said, uniform for DDPM, logit-normal for a flow."""
        if self.timestep_sampling != "auto":
            return self.timestep_sampling
        return "logit-normal" if self.process.kind == "flow" else "uniform"

    def rate(self, step: int) -> float:
        """Share of the learning rate at `step`: a linear warm-up, then the schedule.

        "linear" stays, then falls to zero in the last `decay_steps`; "cosine" falls from the
        warm-up to the end as (1 + cos(pi x)) / 2 (Loshchilov and Hutter, arXiv:1608.03983).
        """
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "constant":
            return rise
        if self.schedule == "cosine":
            along = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            return rise * (1 + math.cos(math.pi * min(max(along, 0.0), 1.0))) / 2
        fall = min(1.0, (self.steps - step) / (self.decay_steps + 1))
        return rise * fall


RESUMABLE_CHANGES = frozenset(
    {
        "steps",
        "decay_steps",
        "log_every",
        "save_every",
        "preview_every",
        "health_every",
        "tensorboard",
        "max_skipped",
        "max_bad_pictures",
    }
)
