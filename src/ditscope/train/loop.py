"""The training loop: resumable at every step, bit for bit on one kind of machine.

All randomness of step n comes from `sample_seed(seed, n)` and the pictures of step n are a function
of (seed, n), so nothing but weights, optimiser state and a few counters needs to be saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from ditscope.core.atomic import new_file
from ditscope.diffusion.noise import sample_seed
from ditscope.errors import BadCheckpoint, NumericalError, ResourceError
from ditscope.model.dit import DiT
from ditscope.train.attention import FastBackward
from ditscope.train.batches import Batch, batches
from ditscope.train.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from ditscope.train.coarse import coarse_model, refine
from ditscope.train.config import TrainConfig
from ditscope.train.ema import update_ema
from ditscope.train.folder import TrainingFolder
from ditscope.train.health import attention_health
from ditscope.train.journal import Journal, Progress
from ditscope.train.nonfinite import NonFinite, explain
from ditscope.train.objective import NoisyBatch, Objective
from ditscope.train.optimizer import load_state_tensors, optimizers, set_rate, state_tensors
from ditscope.train.preview import preview, write_preview
from ditscope.train.sources import data_source
from ditscope.train.start import begin
from ditscope.train.stopping import StopRequest
from ditscope.train.worker import Worker

FAILURE, PREVIEWS = "failure.json", "previews"
HEALTH_ROWS = 8
"""Pictures that are enough to see how attention fares."""

MOST_FAILED_SAVES = 3
"""A disk that is full may be emptied; after so many saves in a row that failed, we stop."""


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


class Training:
    """Networks, optimisers and the step they are at. `run` goes on until `config.steps`.

    Its folder belongs to it until `close`, or until the end of a `with` block.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        """Start in `folder`, or go on where its newest whole checkpoint stands.

        `damaged` tells which newer checkpoints were skipped, and why.

        Raises:
            ResourceError, BadConfig: as `TrainingFolder`.
            BadDataset, BadConfig: as `data_source`.
            BadCheckpoint: there are checkpoints, but none is whole; or as `begin`.
        """
        self.config = config
        self.step, self.pictures, self.skipped = 0, 0, 0
        self._losses: tuple[float, ...] = ()
        self.source = data_source(config)
        self.folder = TrainingFolder(folder, config)
        try:
            torch.manual_seed(config.seed)
            self.coarse = config.coarse_steps > 0
            self.objective = Objective(config)
            self._set_networks(coarse_model(config.model) if self.coarse else DiT(config.model))
            self.damaged = self._resume()
        except BaseException:
            self.close()
            raise
        self._saved, self._failed_saves = self.step, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process train in this folder."""
        self.folder.close()

    def run(self, report: Callable[[Progress], None], tell: Callable[[str], None] = _warn) -> None:
        """Train to the last step; saves at intervals and at the end.

        SIGINT and SIGTERM are obeyed after the step under way is saved; a second one at once.

        Args:
            report: called every `log_every` steps.
            tell: called with what a person should know, such as a save that failed.

        Raises:
            NumericalError: NaN or Inf; the weights are those before that step.
            ResourceError: three checkpoints in a row, or the last one, could not be written.
        """
        journal = Journal(self.folder.log, self.step, self._losses)
        try:
            with StopRequest(lambda: self.step != self._saved) as stop:
                for batch in batches(self.config, self.source, self.step):
                    self._take(batch, journal, report, tell)
                    if not stop.noted and self._due(self.config.save_every):
                        self._try_to_save(journal, tell)
                    if stop.noted:
                        break
                self._losses = tuple(journal.losses)
                if self._saved != self.step:
                    self.save()
                if stop.noted:
                    journal.note(self.step, "stopped", signal=stop.noted.name)
                    tell(f"stopped at step {self.step} and saved; the same command goes on")
                stop.obey()
        finally:
            journal.close()

    def save(self) -> Path:
        """Write a checkpoint of this moment. Raises ResourceError."""
        path = save_checkpoint(
            self.folder.path,
            Checkpoint(
                step=self.step,
                pictures=self.pictures,
                skipped=self.skipped,
                losses=self._losses,
                place=self.source.place_of(self.step * self.config.batch_size),
                model=self.model.state_dict(),
                ema=self.ema.state_dict(),
                optimizer=state_tensors(self.optimizers),
            ),
        )
        self._saved, self._failed_saves = self.step, 0
        return path

    def _try_to_save(self, journal: Journal, tell: Callable[[str], None]) -> None:
        self._losses = tuple(journal.losses)
        try:
            self.save()
        except ResourceError as reason:
            self._failed_saves += 1
            if self._failed_saves == MOST_FAILED_SAVES:
                raise
            journal.note(self.step, "save failed", problem=str(reason))
            tell(f"no checkpoint at step {self.step}, will try again: {reason}")

    def _take(
        self,
        batch: Batch,
        journal: Journal,
        report: Callable[[Progress], None],
        tell: Callable[[str], None],
    ) -> None:
        """One step, with what is said about it."""
        if self.coarse and batch.step == self.config.coarse_steps:
            self._refine()
        loss, norm, problem = self._advance(batch)
        for file, why in self.source.newly_bad():
            journal.note(batch.step, "unreadable picture", file=file, problem=why)
            tell(f"left out {file}: {why}")
        if problem is None:
            journal.add(loss, len(batch.pictures))
        else:
            self._losses = tuple(journal.losses)
            self._skip(problem)
            journal.note(self.step, "skipped", problem=dataclasses.asdict(problem))
            tell(f"skipped: {problem}")
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            report(
                journal.report(
                    self.step,
                    self.pictures,
                    gradient_norm=None if problem else norm,
                    stage="coarse" if self.coarse else "fine",
                    learning_rate=self.config.learning_rate * self.config.rate(batch.step),
                )
            )
        if self._due(self.config.health_every):
            layers = attention_health(self.model, lambda: self._look(batch))
            journal.note(self.step, "attention", layers=[dataclasses.asdict(x) for x in layers])
        if self._due(self.config.preview_every):
            self._preview(tell)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _look(self, batch: Batch) -> None:
        """A forward of the weights that learn, on some pictures of a batch and its own noise."""
        torch.manual_seed(sample_seed(self.config.seed, batch.step))
        noisy = self.objective.draw(batch.x0, batch.y)
        self.objective.losses(self.model, noisy.rows(0, HEALTH_ROWS))

    def _preview(self, tell: Callable[[str], None]) -> None:
        """Pictures are not worth a training: what goes wrong is told."""
        path = self.folder.path / PREVIEWS / f"{self.step:07d}.png"
        try:
            write_preview(path, preview(self.ema, self.config))
        except (NumericalError, ResourceError, BadCheckpoint) as reason:
            tell(f"no preview at step {self.step}: {reason}")

    def _advance(self, batch: Batch) -> tuple[float, float, NonFinite | None]:
        """Loss and gradient norm of a step, taken unless they are not finite."""
        torch.manual_seed(sample_seed(self.config.seed, batch.step))
        set_rate(self.optimizers, self.config, batch.step)
        noisy = self.objective.draw(batch.x0, batch.y)
        loss = self._gradients(noisy)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, self.config.clip_norm or math.inf)
        problem = None
        if torch.isfinite(loss + norm):
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.worker.follow(self.model)
            update_ema(
                self.ema,
                self.model,
                batch.step,
                self.config.ema_decay,
                ramp=self.config.ema_ramp,
            )
            self.pictures += len(batch.pictures)
            self.step = batch.step + 1
        else:
            problem = self._explained(batch, noisy, loss.item(), norm.item())
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        return loss.item(), norm.item(), problem

    def _parts(self, noisy: NoisyBatch) -> Iterator[NoisyBatch]:
        rows = self.config.batch_size // self.config.accumulate
        for first in range(0, self.config.batch_size, rows):
            yield noisy.rows(first, first + rows)

    def _gradients(self, noisy: NoisyBatch) -> Tensor:
        """The mean loss of a batch; its gradients are in the weights, part by part."""
        total = torch.zeros(())
        for part in self._parts(noisy):
            share = len(part.x0) / self.config.batch_size
            # A block that is computed again is so outside of any mode, and must do the same twice.
            with contextlib.nullcontext() if self.config.grad_checkpoint else FastBackward():
                loss = self.objective.losses(self.worker, part).mean() * share
            loss.backward()
            self.worker.hand_gradients_to(self.model)
            total += loss.detach()
        return total

    def _explained(self, batch: Batch, noisy: NoisyBatch, loss: float, norm: float) -> NonFinite:
        def losses() -> Tensor:
            parts = [self.objective.losses(self.worker, part) for part in self._parts(noisy)]
            return torch.cat(parts)

        return explain(
            batch.step,
            loss,
            norm,
            pictures=batch.pictures,
            network=self.worker.network,
            losses=losses,
        )

    def _skip(self, problem: NonFinite) -> None:
        """Go on without this step, or raise NumericalError where that is not allowed (any more)."""
        if self.skipped < self.config.max_skipped:
            self.skipped += 1
            self.step = problem.step + 1
            return
        with contextlib.suppress(ResourceError):  # a full disk must not hide what went wrong
            with new_file(self.folder.path / FAILURE) as beside:
                beside.write_text(json.dumps(dataclasses.asdict(problem), indent=1))
            if self._saved != self.step:
                self.save()
        allowed = f" ({self.skipped} skipped before)" if self.skipped else ""
        raise NumericalError(
            str(problem) + allowed,
            file=self.folder.path / FAILURE,
            fix="a checkpoint of the moment before is kept; max_skipped allows to leave steps out, "
            "or train anew with a lower learning rate or in fp32",
        )

    def _set_networks(self, model: DiT) -> None:
        self.model = model.eval()  # labels are dropped by the objective, nothing else is random
        self.model.grad_checkpoint = self.config.grad_checkpoint
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
        checkpoint, damaged = newest_checkpoint(self.folder.path)
        if checkpoint is None:
            if damaged:
                raise BadCheckpoint(
                    f"no checkpoint is whole; {damaged[0]}",
                    file=self.folder.path,
                    fix="choose another folder to start afresh",
                )
            if self.config.init is not None:
                begin(self.model, self.config)
                self.worker.follow(self.model)
                self.ema.load_state_dict(self.model.state_dict())
            return damaged
        if self.coarse and checkpoint.step > self.config.coarse_steps:
            self.coarse = False
            self._set_networks(DiT(self.config.model))
        self.model.load_state_dict(checkpoint.model)
        self.worker.follow(self.model)
        self.ema.load_state_dict(checkpoint.ema)
        load_state_tensors(self.optimizers, checkpoint.optimizer)
        self.step, self.pictures = checkpoint.step, checkpoint.pictures
        self.skipped, self._losses = checkpoint.skipped, checkpoint.losses
        self.source.go_to(checkpoint.place)
        return damaged
