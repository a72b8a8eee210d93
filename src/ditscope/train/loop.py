"""The training loop: resumable at every step, bit for bit on one kind of machine.

All randomness of step n, and its pictures, are a function of (seed, n), so nothing but weights,
optimiser state and a few counters needs to be saved. Of several processes the first alone writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from ditscope.core.atomic import new_file
from ditscope.errors import BadCheckpoint, DitscopeError, NumericalError, ResourceError
from ditscope.model.dit import DiT
from ditscope.train import tensorboard
from ditscope.train.batches import Batch, batches, rows_of
from ditscope.train.checkpoint import (
    Checkpoint,
    checkpoint_place,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from ditscope.train.config import TrainConfig
from ditscope.train.folder import TrainingFolder
from ditscope.train.health import attention_health
from ditscope.train.journal import Journal, Progress
from ditscope.train.learner import Learner
from ditscope.train.nonfinite import NonFinite
from ditscope.train.peers import Alone, Peers
from ditscope.train.preview import preview, write_preview
from ditscope.train.snapshots import save_snapshot
from ditscope.train.sources import data_source
from ditscope.train.stopping import SIGNALS, StopRequest

FAILURE, PREVIEWS = "failure.json", "previews"
HEALTH_ROWS = 8
"""Pictures that are enough to see how attention fares."""

MOST_FAILED_SAVES = 3
"""A disk that is full may be emptied; after so many saves in a row that failed, we stop."""


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


class Training:
    """A learner, its folder and the step it is at. `run` goes on until `config.steps`.

    Its folder belongs to it until `close`, or until the end of a `with` block.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        peers: Peers | None = None,
        *,
        sharded: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start in `folder`, or go on where its newest whole checkpoint stands.

        `damaged` tells which newer checkpoints were skipped, and why.

        Args:
            config: What to train; the same in every process.
            folder: Where; on a disk that all processes see.
            peers: This process and the others, if there are any. Their number may be another when
                a training goes on.
            sharded: Spread the weights over the processes (FSDP2) instead of copying them (DDP).
            device: Where this process computes; it may be another when a training goes on.

        Raises:
            ResourceError, BadConfig: as `TrainingFolder`.
            BadDataset, BadConfig: as `data_source`.
            BadCheckpoint: there are checkpoints, but none is whole; or as `Learner`.
        """
        self.config, self.peers, self.path = config, peers or Alone(), folder
        self._first = self.peers.rank == 0
        rows_of(config, self.peers.rank, self.peers.size)  # fails before there is a folder
        self.source = data_source(config)
        self._claimed = TrainingFolder(folder, config) if self._first else None
        try:
            checkpoint, self.damaged = self._newest()
            self.learner = Learner(
                config, checkpoint, peers=self.peers, sharded=sharded, device=device
            )
        except BaseException:
            self.close()
            raise
        self.step, self.pictures, self.skipped = 0, 0, 0
        self.left_out = 0  # files that could not be read, since this process began
        self._losses: tuple[float, ...] = ()
        if checkpoint is not None:
            self.step, self.pictures = checkpoint.step, checkpoint.pictures
            self.skipped, self._losses = checkpoint.skipped, checkpoint.losses
            self.source.go_to(checkpoint.place)
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

    @property
    def model(self) -> DiT:
        """The network that learns."""
        return self.learner.model

    @property
    def ema(self) -> DiT:
        """The averaged one, which draws."""
        return self.learner.ema

    def close(self) -> None:
        """Let another process train in this folder."""
        if self._claimed is not None:
            self._claimed.close()

    def run(self, report: Callable[[Progress], None], tell: Callable[[str], None] = _warn) -> None:
        """Train to the last step; saves at intervals and at the end.

        SIGINT and SIGTERM, of any process, are obeyed by all after the step under way is saved; in
        one process a second signal is obeyed at once.

        Args:
            report: called every `log_every` steps.
            tell: called with what a person should know, such as a save that failed.

        Raises:
            NumericalError: NaN or Inf; the weights are those before that step.
            ResourceError: three checkpoints in a row, or the last one, could not be written.
        """
        log = None if self._claimed is None else self._claimed.log
        device = self.learner.device
        journal = Journal(log, self.step, self._losses, self._curves(), device)
        if device.type != "cpu":
            journal.note(self.step, "device", kind=device.type, name=_device_name(device))
        if self.peers.size > 1:
            how = "sharded" if self.learner.sharded else "replicated"
            journal.note(self.step, "processes", number=self.peers.size, weights=how)
        among_others = self.peers.size > 1
        try:
            with StopRequest(lambda: self.step != self._saved, among_others=among_others) as stop:
                try:
                    self._steps(stop, journal, report, tell)
                    self._losses = tuple(journal.losses)
                    if self._saved != self.step:
                        self.save()
                    self.peers.wait_for_all()
                    if stop.noted:
                        journal.note(self.step, "stopped", signal=stop.noted.name)
                        tell(f"stopped at step {self.step} and saved; the same command goes on")
                except DitscopeError:
                    raise  # it says what is not saved, and ends the training as the signal would
                except Exception:  # a callback's
                    stop.obey()
                    raise
                stop.obey()
        finally:
            journal.close()

    def _curves(self) -> tensorboard.Curves | None:
        if not self.config.tensorboard or self._claimed is None:
            return None
        return tensorboard.Curves(self.path / tensorboard.FOLDER, self.step)

    def save(self) -> Path:
        """Write a checkpoint of this moment. Raises ResourceError.

        Every process calls this.
        """
        state = self.learner.state()
        path = checkpoint_place(self.path, self.step)
        if self._first:
            save_checkpoint(
                self.path,
                Checkpoint(
                    step=self.step,
                    pictures=self.pictures,
                    skipped=self.skipped,
                    losses=self._losses,
                    place=self.source.place_of(self.step * self.config.batch_size),
                    **state,
                ),
            )
        self._saved, self._failed_saves = self.step, 0
        return path

    def _steps(
        self,
        stop: StopRequest,
        journal: Journal,
        report: Callable[[Progress], None],
        tell: Callable[[str], None],
    ) -> None:
        """Until the last one, or until somebody wants an end."""
        for batch in batches(self.config, self.source, self.step, self.learner.rows):
            self._take(batch, journal, report, tell)
            if self._stopped(stop, journal, tell):
                break
            if self._due(self.config.save_every):
                self._try_to_save(journal, tell)

    def _stopped(self, stop: StopRequest, journal: Journal, tell: Callable[[str], None]) -> bool:
        """Whether a process was asked to end. All get to know, also of pictures it cannot read."""
        bad = self.source.newly_bad()
        heard = [len(bad), *(stop.noted == number for number in SIGNALS)]
        pictures, *signals = self.peers.sum(torch.tensor(heard, dtype=torch.int64)).tolist()
        if pictures:
            for file, why in (pair for found in self.peers.from_all(bad) for pair in found):
                journal.note(self.step - 1, "unreadable picture", file=file, problem=why)
                self.left_out += 1
                tell(f"left out {file} ({self.left_out} so far): {why}")
        asked = [number for number, count in zip(SIGNALS, signals, strict=True) if count]
        if self.peers.size > 1 and asked:
            stop.noted = asked[0]
        return bool(asked)

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
        if self.learner.coarse and batch.step == self.config.coarse_steps:
            self.learner.refine()
        came = self.learner.advance(batch)
        if came.problem is None:
            journal.add(came.loss, self.config.batch_size)
            self.step, self.pictures = batch.step + 1, self.pictures + self.config.batch_size
        else:
            self._losses = tuple(journal.losses)
            self._skip(came.problem)
            journal.note(self.step, "skipped", problem=dataclasses.asdict(came.problem))
            tell(f"skipped: {came.problem}")
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            report(
                journal.report(
                    self.step,
                    self.pictures,
                    gradient_norm=None if came.problem else came.gradient_norm,
                    stage="coarse" if self.learner.coarse else "fine",
                    learning_rate=self.config.learning_rate * self.config.rate(batch.step),
                )
            )
        if self._due(self.config.snapshot_every, at_the_end=True):
            self._snapshot(journal, tell)
        if self._due(self.config.health_every):
            self._look(batch, journal)
        if self._due(self.config.preview_every):
            self._preview(tell)

    def _due(self, every: int, *, at_the_end: bool = False) -> bool:
        ends = at_the_end and self.step == self.config.steps
        return every > 0 and (self.step % every == 0 or ends)

    def _snapshot(self, journal: Journal, tell: Callable[[str], None]) -> None:
        """One that is missing makes later averages less exact, and is not worth a training."""
        state = self.learner.average_state()
        if not self._first:
            return
        try:
            save_snapshot(self.path, self.step, self.pictures, state)
        except ResourceError as reason:
            journal.note(self.step, "snapshot failed", problem=str(reason))
            tell(f"no snapshot at step {self.step}: {reason}")

    def _look(self, batch: Batch, journal: Journal) -> None:
        """How the attention of the weights that learn fares on some pictures of a batch."""
        network = self.learner.to_look_at(self.model)
        if network is not None:
            layers = attention_health(
                network, lambda: self.learner.look(batch, network, HEALTH_ROWS)
            )
            journal.note(self.step, "attention", layers=[dataclasses.asdict(x) for x in layers])

    def _preview(self, tell: Callable[[str], None]) -> None:
        """Pictures are not worth a training: what goes wrong is told."""
        network = self.learner.to_look_at(self.ema)
        if network is None:
            return
        path = self.path / PREVIEWS / f"{self.step:07d}.png"
        try:
            write_preview(path, preview(network, self.config))
        except (NumericalError, ResourceError, BadCheckpoint) as reason:
            tell(f"no preview at step {self.step}: {reason}")

    def _skip(self, problem: NonFinite) -> None:
        """Go on without this step, or raise NumericalError where that is not allowed (any more)."""
        if self.skipped < self.config.max_skipped:
            self.skipped += 1
            self.step = problem.step + 1
            return
        # A full disk must not hide what went wrong.
        with contextlib.suppress(ResourceError):
            if self._first:
                with new_file(self.path / FAILURE) as beside:
                    beside.write_text(json.dumps(dataclasses.asdict(problem), indent=1))
        with contextlib.suppress(ResourceError):
            if self._saved != self.step:
                self.save()
        self.peers.wait_for_all()
        allowed = f" ({self.skipped} skipped before)" if self.skipped else ""
        raise NumericalError(
            str(problem) + allowed,
            file=self.path / FAILURE,
            fix="a checkpoint of the moment before is kept; max_skipped allows to leave steps out, "
            "or train anew with a lower learning rate"
            + (" or in fp32" if self.config.precision != "fp32" else ""),
        )

    def _newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The checkpoint to go on from, and what was wrong with newer ones: the first one's say."""
        checkpoint, damaged = newest_checkpoint(self.path) if self._first else (None, [])
        step = checkpoint.step if checkpoint else None
        step, damaged = self.peers.from_first((step, damaged))
        if step is None and damaged:
            raise BadCheckpoint(
                f"no checkpoint is whole; {damaged[0]}",
                file=self.path,
                fix="choose another folder to start afresh",
            )
        if step is not None and checkpoint is None:
            checkpoint = load_checkpoint(checkpoint_place(self.path, step))
        return checkpoint, damaged
