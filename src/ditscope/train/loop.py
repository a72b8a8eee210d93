"""The training loop: resumable at every checkpoint, bit for bit on one kind of machine.

All randomness of step n comes from `sample_seed(seed, n)` and the pictures of step n are a function
of (seed, n), so nothing but weights, optimiser state and the step number needs to be saved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ditscope.core.atomic import new_file
from ditscope.core.strict_json import parse
from ditscope.diffusion.noise import sample_seed
from ditscope.errors import BadCheckpoint, BadConfig, NumericalError, ResourceError
from ditscope.model.dit import DiT
from ditscope.train.batches import batches
from ditscope.train.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from ditscope.train.coarse import coarse_model, refine
from ditscope.train.config import RESUMABLE_CHANGES, TrainConfig
from ditscope.train.ema import update_ema
from ditscope.train.objective import objective
from ditscope.train.optimizer import load_state_tensors, optimizers, set_rate, state_tensors
from ditscope.train.worker import Worker

CONFIG = "config.json"


@dataclass(frozen=True)
class Progress:
    """What the log says every `log_every` steps."""

    step: int
    pictures: int
    loss: float  # mean since the last report
    gradient_norm: float
    pictures_per_second: float
    stage: str  # "coarse" or "fine"


class Training:
    """Networks, optimisers and the step they are at. `run` goes on until `config.steps`."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.step, self.pictures = 0, 0
        torch.manual_seed(config.seed)
        self.coarse = config.coarse_steps > 0
        self._set_networks(coarse_model(config.model) if self.coarse else DiT(config.model))
        self.damaged = self._resume()

    def run(self, report: Callable[[Progress], None]) -> None:
        """Train to the last step; saves at intervals and at the end."""
        loss_of = objective(self.config)
        reports = self._reports(report)
        next(reports)
        saved = self.step
        for step, x0, y in batches(self.config, self.step):
            if self.coarse and step == self.config.coarse_steps:
                self._refine()
            reports.send(self._advance(step, loss_of, x0, y))
            if self.step % self.config.save_every == 0:
                self.save()
                saved = self.step
        if saved != self.step:
            self.save()

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        return save_checkpoint(
            self.folder,
            Checkpoint(
                step=self.step,
                pictures=self.pictures,
                model=self.model.state_dict(),
                ema=self.ema.state_dict(),
                optimizer=state_tensors(self.optimizers),
            ),
        )

    def _advance(
        self, step: int, loss_of: Callable[..., Tensor], x0: Tensor, y: Tensor
    ) -> tuple[float, float]:
        torch.manual_seed(sample_seed(self.config.seed, step))
        set_rate(self.optimizers, self.config, step)
        loss = loss_of(self.worker, x0, y).mean()
        loss.backward()
        self.worker.hand_gradients_to(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, self.config.clip_norm)
        if not torch.isfinite(loss + norm):
            raise NumericalError(
                f"loss {loss.item()} and gradient norm {norm.item()} at step {step}",
                fix="the last checkpoint is good; try a lower learning rate",
            )
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.worker.follow(self.model)
        update_ema(self.ema, self.model, step, self.config.ema_decay)
        self.step, self.pictures = step + 1, self.pictures + len(x0)
        return loss.item(), norm.item()

    def _set_networks(self, model: DiT) -> None:
        self.model = model.train()
        self.worker = Worker(model, self.config.precision)
        self.ema = DiT(model.config).eval().requires_grad_(False)
        self.ema.load_state_dict(model.state_dict())
        self.optimizers = optimizers(self.config, self.model)

    def _refine(self) -> None:
        """From the coarse stage to the fine one; the optimisers start afresh."""
        slow = refine(self.ema.state_dict(), self.config.model)
        fast = refine(self.model.state_dict(), self.config.model)
        fine = DiT(self.config.model)
        fine.load_state_dict(fast)
        self._set_networks(fine)
        self.ema.load_state_dict(slow)
        self.coarse = False

    def _resume(self) -> list[str]:
        self._claim_folder()
        self._claim_configuration()
        checkpoint, damaged = newest_checkpoint(self.folder)
        if checkpoint is None:
            if damaged:
                raise BadCheckpoint(
                    f"no checkpoint is whole; {damaged[0]}",
                    file=self.folder,
                    fix="choose another folder to start afresh",
                )
            return damaged
        if self.coarse and checkpoint.step > self.config.coarse_steps:
            self.coarse = False
            self._set_networks(DiT(self.config.model))
        self.model.load_state_dict(checkpoint.model)
        self.worker.follow(self.model)
        self.ema.load_state_dict(checkpoint.ema)
        load_state_tensors(self.optimizers, checkpoint.optimizer)
        self.step, self.pictures = checkpoint.step, checkpoint.pictures
        return damaged

    def _claim_folder(self) -> None:
        """Make the folder, or refuse one that holds anything but a training."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            strange = any(self.folder.iterdir()) and not (self.folder / CONFIG).exists()
        except OSError as reason:
            raise ResourceError(
                f"cannot hold a training: {reason.strerror}", file=self.folder
            ) from None
        if strange:
            raise ResourceError(
                "holds other files", file=self.folder, fix="choose the name of a new folder"
            )

    def _claim_configuration(self) -> None:
        """Save the configuration, or refuse a folder that holds another training."""
        path = self.folder / CONFIG
        mine = self.config.model_dump(mode="json")
        if path.exists():
            theirs = parse(path.read_bytes(), file=path)
            for key in sorted(mine.keys() - RESUMABLE_CHANGES):
                if mine[key] != theirs.get(key):
                    raise BadConfig(
                        f"this training has {theirs.get(key)}, you asked for {mine[key]}",
                        file=path,
                        field=key,
                        fix="choose another folder, or the same settings",
                    )
        with new_file(path) as beside:
            beside.write_text(json.dumps(mine, indent=1))

    def _reports(
        self, report: Callable[[Progress], None]
    ) -> Generator[None, tuple[float, float], None]:
        log = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        losses, started, norm = [], time.perf_counter(), 0.0
        with log:
            while True:
                loss, norm = yield
                losses.append(loss)
                if self.step % self.config.log_every and self.step != self.config.steps:
                    continue
                rate = len(losses) * self.config.batch_size / (time.perf_counter() - started)
                stage = "coarse" if self.coarse else "fine"
                line = Progress(
                    self.step, self.pictures, sum(losses) / len(losses), norm, rate, stage
                )
                log.write(json.dumps(line.__dict__) + "\n")
                log.flush()
                report(line)
                losses, started = [], time.perf_counter()
