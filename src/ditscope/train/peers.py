"""The processes of one training, as the loop sees them: which one this is, and a few words.

`ditscope.distributed.group.Group` is what there is of it when several train together.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

Words = TypeVar("Words")


class Peers(Protocol):
    """This process and the others. Every method is called by all of them, in one order."""

    @property
    def rank(self) -> int:
        """Which process this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def from_first(self, words: Words) -> Words:
        """What rank 0 calls this with."""
        ...

    def from_all(self, words: Words) -> list[Words]:
        """What each rank calls this with, by rank."""
        ...

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each."""
        ...

    def wait_for_all(self) -> None:
        """Return when every rank has called this."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def from_first(self, words: Words) -> Words:
        """As `Peers` says."""
        return words

    def from_all(self, words: Words) -> list[Words]:
        """As `Peers` says."""
        return [words]

    def sum(self, numbers: Tensor) -> Tensor:
        """As `Peers` says."""
        return numbers

    def wait_for_all(self) -> None:
        """As `Peers` says."""
