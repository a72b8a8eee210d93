"""The processes that draw one run: their ranks, and the few words between them.

Samples do not depend on one another, so no tensor is ever exchanged: gloo carries the words, on a
GPU too.
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

import torch.distributed as dist

from ditscope.errors import ResourceError

Words = TypeVar("Words")

LONGEST_SAMPLING = timedelta(days=365)
"""Ranks wait for one another as long as it takes; a dead one is told by its closed connection."""

POLL_SECONDS = 0.05
SECONDS_TO_BE_ENDED = 20
"""How long a rank that lost another waits for the launcher to end it: the first failure is the one
to be reported, and this is not it."""

REST = "what is finished stays; the same command, with that --out, draws the rest"

STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher (torchrun, or ours) says to each process in its environment."""


@dataclass(frozen=True)
class Group:
    """One process as it sees the others."""

    rank: int
    size: int
    local_rank: int  # on this machine
    notes: Path | None = None  # folder where each rank says what it is doing

    def from_first(self, words: Words) -> Words:
        """What rank 0 calls this with, on every rank. Raises ResourceError if a rank is gone."""
        box: list[Any] = [words]
        with self._others():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait_for_all(self) -> None:
        """Return when every rank has called this. Raises ResourceError if one is gone."""
        with self._others():
            work = dist.barrier(async_op=True)
            assert work is not None  # every rank is a member
            while not work.is_completed():
                time.sleep(POLL_SECONDS)  # in Python, so that a signal is heard
            work.wait()

    def note(self, doing: str) -> None:
        """Leave word of what this rank is doing, to be read if it is killed."""
        if self.notes is not None:
            (self.notes / str(self.rank)).write_text(doing, encoding="utf-8")

    @contextlib.contextmanager
    def _others(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            time.sleep(SECONDS_TO_BE_ENDED)
            raise ResourceError(
                "another process of this run has ended before its time",
                fix=REST,
            ) from None


def is_started() -> bool:
    """Whether a launcher has started this process as one of several."""
    return all(name in os.environ for name in STARTED)


@contextlib.contextmanager
def joined(notes: Path | None = None) -> Iterator[Group]:
    """The group that a launcher has started this process in."""
    rank, size, local_rank = (int(os.environ[name]) for name in STARTED[:3])
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=LONGEST_SAMPLING)
    try:
        yield Group(rank, size, local_rank, notes)
    finally:
        dist.destroy_process_group()
