"""The processes of one piece of work: their ranks, and the few words between them.

Samples do not depend on one another, so processes that draw exchange no tensor: gloo carries the
words, on a GPU too. Processes that train also sum their gradients: those on GPUs through NCCL.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ditscope.errors import ResourceError

Words = TypeVar("Words")

LONGEST_WAIT = timedelta(days=365)
"""Ranks wait for one another as long as it takes; a dead one is told by its closed connection."""

POLL_SECONDS = 0.05
SECONDS_TO_BE_ENDED = 20
"""How long a rank that lost another waits for the launcher to end it: the first failure is the one
to be reported, and this is not it."""

REST = "what is finished stays; the same command, with that --out, does the rest"

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""What carries the tensors of a kind of device. Words are on the CPU always."""

STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher (torchrun, or ours) says to each process in its environment."""


@dataclass(frozen=True)
class Group:
    """One process as it sees the others. Every rank calls the same methods, in one order."""

    rank: int
    size: int
    local_rank: int  # on this machine
    notes: Path | None = None  # folder where each rank says what it is doing

    def from_first(self, words: Words) -> Words:
        """What rank 0 calls this with, on every rank."""
        box: list[Any] = [words]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_all(self, words: Words) -> list[Words]:
        """What each rank calls this with, by rank."""
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, words)
        return boxes

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each."""
        total = numbers.clone()
        dist.all_reduce(total)
        return total

    def wait_for_all(self) -> None:
        """Return when every rank has called this."""
        work = dist.barrier(async_op=True)
        assert work is not None  # every rank is a member
        while not work.is_completed():
            time.sleep(POLL_SECONDS)  # in Python, so that a signal is heard
        work.wait()

    def note(self, doing: str) -> None:
        """Leave word of what this rank is doing, to be read if it is killed."""
        if self.notes is not None:
            (self.notes / str(self.rank)).write_text(doing, encoding="utf-8")


def is_started() -> bool:
    """Whether a launcher has started this process as one of several."""
    return all(name in os.environ for name in STARTED)


def processes_here() -> int:
    """How many processes a launcher has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))


@contextlib.contextmanager
def joined(notes: Path | None = None, *, sums_on: str = "cpu") -> Iterator[Group]:
    """The group that a launcher has started this process in.

    Args:
        notes: Folder where each rank says what it is doing.
        sums_on: "cpu", or "cuda" where tensors of GPUs are to be summed: of those of a machine,
            rank n of it has number n.

    Raises ResourceError, when the block has been left, if another rank is gone.
    """
    rank, size, local_rank = (int(os.environ[name]) for name in STARTED[:3])
    if sums_on == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group(BACKENDS[sums_on], rank=rank, world_size=size, timeout=LONGEST_WAIT)
    try:
        yield Group(rank, size, local_rank, notes)
    except RuntimeError as error:
        if not _is_of_the_connection(error):
            raise
        time.sleep(SECONDS_TO_BE_ENDED)
        raise ResourceError(
            "another process of this run has ended before its time", fix=REST
        ) from None
    finally:
        dist.destroy_process_group()


def _is_of_the_connection(error: RuntimeError) -> bool:
    """Whether a rank could not be heard. gloo has no exception of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
