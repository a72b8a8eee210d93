"""The networks of a training, their optimisers, and one step of them.

All randomness of step n comes from `sample_seed(seed, n)`. With several processes each computes its
rows of every batch, with the random numbers that these rows have in the whole of it; the sums that
follow are those of one process that computes the batch in as many parts.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ditscope.diffusion.noise import sample_seed
from ditscope.errors import BadCheckpoint, ResourceError, foreign
from ditscope.model.dit import DiT
from ditscope.train.attention import FastBackward
from ditscope.train.batches import Batch, rows_of
from ditscope.train.checkpoint import Checkpoint
from ditscope.train.coarse import coarse_model, refine
from ditscope.train.config import TrainConfig
from ditscope.train.ema import update_ema, update_power
from ditscope.train.nonfinite import NonFinite, explain, look_again
from ditscope.train.objective import NoisyBatch, Objective
from ditscope.train.optimizer import load_state_tensors, optimizers, set_rate, state_tensors
from ditscope.train.peers import Alone, Peers
from ditscope.train.posthoc import LENGTHS, exponent
from ditscope.train.snapshots import AVERAGES, split
from ditscope.train.start import begin
from ditscope.train.worker import ReplicatedWorker, Worker

EXPONENTS = {name: exponent(length) for name, length in zip(AVERAGES, LENGTHS, strict=True)}
"""Of the averages that snapshots are taken of, by name."""

BACKEND = "inductor"
"""What makes a program of the blocks, where a training is compiled."""


@dataclass(frozen=True)
class Outcome:
    """What came of a step: of the whole batch, the same in every process."""

    loss: float
    gradient_norm: float  # before clipping
    problem: NonFinite | None  # why the step was not taken


class Learner:
    """The weights that learn, their average, the optimisers, and how a batch changes them."""

    def __init__(
        self,
        config: TrainConfig,
        checkpoint: Checkpoint | None = None,
        *,
        peers: Peers | None = None,
        sharded: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Fresh networks, or those of a checkpoint.

        First weights and all random numbers come from the CPU, so they are the same on any device.

        Args:
            config: The same in every process.
            checkpoint: The same in every process.
            peers: This process and the others that train with it.
            sharded: Spread weights, average and optimiser state over the processes (FSDP2); else
                each has all of them (DDP).
            device: Where this process computes.

        Raises:
            BadConfig: as `rows_of` or `begin`.
            BadCheckpoint: as `begin`, or the averages are missing.
            ResourceError: the training is to be compiled, and there is no compiler.
        """
        self.config = config
        self.peers: Peers = peers or Alone()
        self.sharded = sharded and self.peers.size > 1
        self.rows = rows_of(config, self.peers.rank, self.peers.size)
        self.device = torch.device(device)
        self.objective = Objective(config, self.device)
        self.coarse = config.coarse_steps > 0
        if checkpoint is not None and checkpoint.step > config.coarse_steps:
            self.coarse = False
        torch.manual_seed(config.seed)
        model = coarse_model(config.model) if self.coarse else DiT(config.model)
        if checkpoint is not None:
            if config.snapshot_every and not checkpoint.averages:
                raise BadCheckpoint("a checkpoint has no averages to take snapshots of")
            model.load_state_dict(checkpoint.model)
        elif config.init is not None:
            begin(model, config)
        self._set_networks(
            model,
            model.state_dict() if checkpoint is None else checkpoint.ema,
            {} if checkpoint is None else split(checkpoint.averages),
        )
        if checkpoint is not None:
            load_state_tensors(self.optimizers, checkpoint.optimizer, self._placed)

    def advance(self, batch: Batch) -> Outcome:
        """Take the step of a batch, unless its loss or its gradient is not finite."""
        torch.manual_seed(sample_seed(self.config.seed, batch.step))
        set_rate(self.optimizers, self.config, batch.step)
        batch = batch.to(self.device)
        noisy = self.objective.draw(batch.x0, batch.y, batch.rows)
        loss = self.peers.sum(self.gradients(noisy))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = self._whole(nn.utils.clip_grad_norm_(trained, self.config.clip_norm or math.inf))
        problem = None
        if torch.isfinite(loss + norm):
            for optimizer in self.optimizers.values():
                optimizer.step()
            self.worker.follow()
            update_ema(
                self.ema,
                self.model,
                batch.step,
                self.config.ema_decay,
                ramp=self.config.ema_ramp,
            )
        else:
            problem = self._explained(batch, noisy, loss.item(), norm.item())
        for name, average in self.averages.items():
            update_power(average, self.model, batch.step, EXPONENTS[name])
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        return Outcome(loss.item(), norm.item(), problem)

    def look(self, batch: Batch, network: nn.Module, rows: int) -> None:
        """A forward of `network` on the first rows of a batch and their own noise."""
        torch.manual_seed(sample_seed(self.config.seed, batch.step))
        batch = batch.to(self.device)
        noisy = self.objective.draw(batch.x0, batch.y, batch.rows)
        self.objective.losses(network, noisy.rows(0, rows))

    def gradients(self, noisy: NoisyBatch) -> Tensor:
        """This process's share of the mean loss of a batch, (), float64.

        The gradients of the whole batch are in the weights that learn then.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        parts = list(self._parts(noisy))
        for number, part in enumerate(parts, start=1):
            share = len(part.x0) / self.config.batch_size
            with self.worker.part(last=number == len(parts)):
                with contextlib.nullcontext() if self._as_written() else FastBackward():
                    loss = self.objective.losses(self.worker, part).mean() * share
                loss.backward()
            total += loss.detach()
        return total

    def _as_written(self) -> bool:
        """Whether attention keeps its own backward pass.

        A block that is computed again is so outside of any mode, and must do the same twice; a
        compiled one has its gradients in its graph.
        """
        return self.config.grad_checkpoint or self.config.compile

    def refine(self) -> None:
        """From the coarse stage to the fine one; the optimisers start afresh."""
        slow = refine(self._all_of(self.ema.state_dict()), self.config.model)
        fast = refine(self._all_of(self.model.state_dict()), self.config.model)
        averages = {
            name: refine(self._all_of(average.state_dict()), self.config.model)
            for name, average in self.averages.items()
        }
        fine = DiT(self.config.model)
        fine.load_state_dict(fast)
        self._set_networks(fine, slow, averages)
        self.coarse = False

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything to be kept, under the names of `Checkpoint`, whole, as in one process.

        Every process calls this; only the first gets something. The tensors are on the CPU.
        """
        parts = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": state_tensors(self.optimizers),
        }
        state = {name: self._all_of(part, first_only=True) for name, part in parts.items()}
        return {**state, "averages": self.average_state()}

    def average_state(self) -> dict[str, Tensor]:
        """The averages that snapshots are taken of, by AVERAGE.NAME; else as `state`."""
        return {
            f"{average}.{name}": tensor
            for average, network in self.averages.items()
            for name, tensor in self._all_of(network.state_dict(), first_only=True).items()
        }

    def to_look_at(self, network: DiT) -> DiT | None:
        """One of the two networks, whole and not compiled, in the first process; else None.

        Every process calls this.
        """
        first = self.peers.rank == 0
        if not (self.sharded or self.config.compile):
            return network if first else None
        state = self._all_of(network.state_dict(), first_only=True)
        if not first:
            return None
        plain = DiT(network.config).eval()
        plain.load_state_dict(state)
        return plain.to(self.device)

    def _set_networks(
        self, model: DiT, slow: dict[str, Tensor], averages: dict[str, dict[str, Tensor]]
    ) -> None:
        start = model.state_dict()  # of averages that begin here; their first step replaces it
        self.model = model.to(
            self.device
        ).eval()  # labels are dropped by the objective, nothing else is random
        self.model.grad_checkpoint = self.config.grad_checkpoint
        self.ema = self._slow_copy(model, slow)
        kept = EXPONENTS if self.config.snapshot_every else {}
        self.averages = {name: self._slow_copy(model, averages.get(name) or start) for name in kept}
        precision = self.config.precision
        if self.sharded:
            from ditscope.train.sharded import ShardedWorker, shard

            shard(self.model, precision, self.device.type)
            for network in (self.ema, *self.averages.values()):
                shard(network, "fp32", self.device.type)
            self.worker: Worker = ShardedWorker(self.model, precision)
        else:
            kind = ReplicatedWorker if self.peers.size > 1 else Worker
            self.worker = kind(self.model, precision)
        if self.config.compile:
            _check_compiler()
            for block in cast(nn.ModuleList, self.worker.network.get_submodule("blocks")):
                block.compile(backend=BACKEND)  # one graph for all of them
        self.optimizers = optimizers(self.config, self.model)

    def _slow_copy(self, model: DiT, state: dict[str, Tensor]) -> DiT:
        copy = DiT(model.config).eval().requires_grad_(False)
        copy.load_state_dict(state)
        return copy.to(self.device)

    def _parts(self, noisy: NoisyBatch) -> Iterator[NoisyBatch]:
        rows = len(self.rows) // self.config.accumulate
        for first in range(0, len(self.rows), rows):
            yield noisy.rows(first, first + rows)

    def _explained(self, batch: Batch, noisy: NoisyBatch, loss: float, norm: float) -> NonFinite:
        def losses() -> Tensor:
            parts = [self.objective.losses(self.worker, part) for part in self._parts(noisy)]
            return torch.cat(parts)

        with torch.compiler.set_stance("force_eager"):  # a graph calls no hooks of its modules
            seen = look_again(self.worker.network, batch.pictures, losses)
        return explain(batch.step, loss, norm, self.peers.from_all(seen))

    def _whole(self, tensor: Tensor) -> Tensor:
        if not self.sharded:
            return tensor
        from ditscope.train.sharded import whole

        return whole(tensor)

    def _placed(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        if not self.sharded:
            return tensor
        from ditscope.train.sharded import spread_like

        return spread_like(tensor, parameter)

    def _all_of(self, tensors: dict[str, Tensor], *, first_only: bool = False) -> dict[str, Tensor]:
        """Whole tensors on the CPU; what the first process alone needs the others drop at once."""
        kept: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            found = self._whole(tensor)
            if self.peers.rank == 0 or not first_only:
                kept[name] = found.cpu()
        return kept


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ResourceError(
            f"torch.compile needs a C++ compiler, and there is no {foreign(compiler)}",
            field="compile",
            fix="install one and name it in CXX, or train without --compile",
        )
