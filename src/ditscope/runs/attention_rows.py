"""Exact attention rows and columns from Q, K and the log-sum-exp of each query.

    p_ij = exp(scale * q_i . k_j - lse_i)

No matrix is formed: what covers many tokens is summed block by block. That a row sums to one ties
Q, K, scale and log-sum-exp together: it is checked on every row that leaves here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ditscope.errors import BadRun
from ditscope.runs.chunks import widen
from ditscope.runs.outputs import Agreement

ROW_SUM_TOLERANCE = 1e-3
BLOCK_ELEMENTS = 2**20
"""Weights that are in memory at a time: 4 MiB."""


@dataclass(frozen=True)
class Operands:
    """What one attention call of one sample and branch worked on.

    Q and K are as they were stored, bfloat16 as the bits of uint16, and become float32 where they
    are used: exactly, and half the memory.
    """

    q: NDArray[Any]  # (head, query, head_width)
    k: NDArray[Any]  # (head, key, head_width)
    lse: NDArray[np.float32]  # (head, query), natural log
    scale: float
    source: Literal["stored", "replayed"]
    numbers: str = "float32"  # what q and k were computed in
    agreement: Agreement | None = None  # of a replay with the recording, if that can be told

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.q.nbytes + self.k.nbytes + self.lse.nbytes

    def float_q(self, heads: slice, queries: NDArray[np.intp]) -> NDArray[np.float32]:
        """Some queries of some heads, (head, query, head_width)."""
        return widen(self.q[heads, queries], self.numbers)

    def float_k(self, heads: slice, keys: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Some keys (None: all) of some heads, (head, key, head_width)."""
        return widen(self.k[heads] if keys is None else self.k[heads, keys], self.numbers)


@dataclass(frozen=True)
class Tokens:
    """Some tokens and how much each counts."""

    index: NDArray[np.intp]
    weight: NDArray[np.float64]


def looking(operands: Operands, heads: slice, queries: Tokens) -> tuple[NDArray[np.float64], float]:
    """Where `queries` look: (head, key), their weighted sum; how far a row is from summing to one.

    Raises:
        BadRun: a row does not sum to one within 1e-3: the parts do not belong together.
    """
    k = operands.float_k(heads)
    total = np.zeros(k.shape[:2])
    worst = 0.0
    for block in _blocks(queries, k.shape[0] * k.shape[1]):
        found, error = _rows(operands, heads, k, block.index)
        total += np.einsum("hqk,q->hk", found, block.weight)
        worst = max(worst, error)
    return total, worst


def looked_at(operands: Operands, heads: slice, keys: Tokens) -> NDArray[np.float64]:
    """Who looks at `keys`: (head, query), the weighted sum of the shares that they receive."""
    every = np.arange(operands.q.shape[1])
    q, lse = operands.float_q(heads, every), operands.lse[heads, :, None]
    total = np.zeros(q.shape[:2])
    for block in _blocks(keys, q.shape[0] * q.shape[1]):
        k = operands.float_k(heads, block.index)
        with np.errstate(all="ignore"):  # damaged numbers show in the rows
            found = np.exp(operands.scale * (q @ k.swapaxes(-1, -2)) - lse)
        total += found @ block.weight
    return total


def maps(operands: Operands, queries: NDArray[np.intp]) -> NDArray[np.float32]:
    """Where each of `queries` looks, in every head: (head, query, key), rows that sum to one.

    Raises:
        BadRun: a row does not sum to one within 1e-3: the parts do not belong together.
    """
    return _rows(operands, slice(None), operands.float_k(slice(None)), queries)[0]


def _rows(
    operands: Operands, heads: slice, k: NDArray[np.float32], queries: NDArray[np.intp]
) -> tuple[NDArray[np.float32], float]:
    """(head, query, key), and the largest distance of a sum from one."""
    q, lse = operands.float_q(heads, queries), operands.lse[heads, queries, None]
    with np.errstate(all="ignore"):  # damaged numbers show in the sums
        found = q @ k.swapaxes(-1, -2)
        found *= operands.scale
        found -= lse
        np.exp(found, out=found)
        error = float(np.abs(found.sum(axis=-1, dtype=np.float64) - 1).max())
    if not error <= ROW_SUM_TOLERANCE:
        which = f"query {queries[0]}" if len(queries) == 1 else "a query"
        raise BadRun(
            f"attention of {which} sums to 1 with an error of {error:.1e}; its Q, K and "
            f"log-sum-exp ({operands.source}) do not belong together"
        )
    return found, error


def _blocks(tokens: Tokens, others: int) -> Iterator[Tokens]:
    """Parts of `tokens`, each against `others` numbers at a time."""
    size = max(1, BLOCK_ELEMENTS // others)
    for first in range(0, len(tokens.index), size):
        part = slice(first, first + size)
        yield Tokens(tokens.index[part], tokens.weight[part])
