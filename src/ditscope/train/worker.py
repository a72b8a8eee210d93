"""The network that computes, in the number type of a step, while float32 weights learn.

In one process it is a bfloat16 copy. Against autocast this saves every conversion inside a step, a
quarter of its time on a CPU: one copy of all weights each way replaces a conversion of every
operand. With several processes the gradients of all of them are summed, in float32.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

Precision = Literal["bf16", "fp32"]


class Worker(nn.Module):
    """`network` in the number type of a step. With "fp32" it is the network itself."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.lowered = precision == "bf16"
        self.network = copy.deepcopy(network).bfloat16() if self.lowered else network
        both = zip(self.network.parameters(), network.parameters(), strict=True)
        self._learning: dict[Tensor, Tensor] = dict(both)  # by the parameter that computes

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """As the network's, from and to float32: (B, C, h, w), (B,), (B,) -> (B, C_out, h, w)."""
        return self.compute(x.bfloat16() if self.lowered else x, t, y).float()

    def compute(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """One forward in the number type of a step."""
        return self.network(x, t, y)

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Take loss and gradients of a part of a batch inside.

        After it they have been added, in float32, to those of the weights that learn; after the
        `last` part of a batch the weights have the gradients of all processes.
        """
        yield
        self._hand_over()

    @torch.no_grad()
    def follow(self) -> None:
        """Take over the weights after they have learned."""
        if self.lowered:
            for own, learning in self._learning.items():
                own.copy_(learning)

    @torch.no_grad()
    def _hand_over(self) -> None:
        if not self.lowered:
            return
        for own, learning in self._learning.items():
            if own.grad is not None:
                _add(own.grad, learning)
                own.grad = None


class ReplicatedWorker(Worker):
    """The same network in every process (DDP): each has all weights, and part of each batch.

    Gradients are summed while the backward pass still runs. The losses of all processes are shares
    of one mean, so their gradients are added and not averaged.
    """

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__(network, precision)
        self._together = DistributedDataParallel(self.network)
        self._together.register_comm_hook(None, lambda _, bucket: self._sum_up(bucket))

    def compute(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """One forward in the number type of a step."""
        return self._together(x, t, y) if torch.is_grad_enabled() else self.network(x, t, y)

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """As `Worker` says."""
        if last:
            yield
            if self.lowered:  # handed over as they were summed
                self.network.zero_grad()
            return
        with self._together.no_sync():
            yield
        self._hand_over()

    def _sum_up(
        self,
        bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> Future[Any]:
        """Add the gradients of a bucket to those of the parts before, and then over all ranks."""
        buffer = bucket.buffer()
        if not self.lowered:
            return _summed(buffer).then(lambda done: done.value()[0])
        learning = [self._learning[own] for own in bucket.parameters()]
        for gradient, weight in zip(bucket.gradients(), learning, strict=True):
            _add(gradient, weight)
        flat = torch.cat([_gradient(weight).flatten() for weight in learning])

        def spread(done: Future[Any]) -> Tensor:
            pieces = flat.split([weight.numel() for weight in learning])
            for weight, piece in zip(learning, pieces, strict=True):
                weight.grad = piece.view_as(weight)
            return buffer

        return _summed(flat).then(spread)


def _add(gradient: Tensor, weight: Tensor) -> None:
    more = gradient.float()
    weight.grad = more if weight.grad is None else weight.grad.add_(more)


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _summed(buffer: Tensor) -> Future[Any]:
    work = dist.all_reduce(buffer, async_op=True)
    assert work is not None  # every rank is a member
    return work.get_future()
