"""Exact attention rows and columns from Q, K and the log-sum-exp of each query.

    p_ij = exp(scale * q_i . k_j - lse_i)

No matrix is formed. That a row sums to one ties Q, K, scale and log-sum-exp together: it is checked
on every row that leaves here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ditscope.errors import BadRun

ROW_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Operands:
    """What one attention call of one sample and branch worked on, in float32."""

    q: NDArray[np.float32]  # (head, query, head_width)
    k: NDArray[np.float32]  # (head, key, head_width)
    lse: NDArray[np.float32]  # (head, query), natural log
    scale: float
    source: Literal["stored", "replayed"]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.q.nbytes + self.k.nbytes + self.lse.nbytes


def rows(operands: Operands, heads: slice, query: int) -> tuple[NDArray[np.float32], float]:
    """Where `query` looks: (head, key), and how far the worst row is from summing to one.

    Raises:
        BadRun: a row does not sum to one within 1e-3: the parts do not belong together.
    """
    q, lse = operands.q[heads, query, :, None], operands.lse[heads, query, None]
    with np.errstate(all="ignore"):  # damaged numbers show in the sum
        found = np.exp(operands.scale * (operands.k[heads] @ q)[..., 0] - lse)
        error = float(np.abs(found.sum(axis=-1, dtype=np.float64) - 1).max())
    if not error <= ROW_SUM_TOLERANCE:
        raise BadRun(
            f"attention of query {query} sums to 1 with an error of {error:.1e}; its Q, K and "
            f"log-sum-exp ({operands.source}) do not belong together"
        )
    return found, error


def maps(operands: Operands, queries: NDArray[np.intp]) -> NDArray[np.float32]:
    """Where each of `queries` looks, in every head: (head, query, key), rows that sum to one.

    Raises:
        BadRun: a row does not sum to one within 1e-3: the parts do not belong together.
    """
    q, lse = operands.q[:, queries], operands.lse[:, queries, None]
    with np.errstate(all="ignore"):  # damaged numbers show in the sums
        found = np.exp(operands.scale * (q @ operands.k.swapaxes(-1, -2)) - lse)
        error = float(np.abs(found.sum(axis=-1, dtype=np.float64) - 1).max())
    if not error <= ROW_SUM_TOLERANCE:
        raise BadRun(
            f"attention sums to 1 with an error of {error:.1e}; its Q, K and log-sum-exp "
            f"({operands.source}) do not belong together"
        )
    return found


def columns(operands: Operands, heads: slice, key: int) -> NDArray[np.float32]:
    """Who looks at `key`: the share of each query's attention that it receives, (head, query)."""
    k = operands.k[heads, key, :, None]
    with np.errstate(all="ignore"):
        return np.exp(operands.scale * (operands.q[heads] @ k)[..., 0] - operands.lse[heads])
