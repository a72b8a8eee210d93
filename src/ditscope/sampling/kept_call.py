"""What a recorded run keeps of one attention call: on its way to the CPU, then as it is stored.

Shapes: B rows of one batch (branches times samples), R rows of them that are kept, H heads,
N queries, M keys, K head width, Q proven queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditscope.attention.capture import Seen
from ditscope.attention.witness import projected
from ditscope.core.manifest import StepRecord
from ditscope.pipeline import DTYPES
from ditscope.runs import proof
from ditscope.runs.chunks import widen
from ditscope.runs.proof import Witness


class HostCopy:
    """A copy of a tensor on the CPU. From a GPU it is made while the network goes on."""

    def __init__(self, tensor: Tensor) -> None:
        on_gpu = tensor.is_cuda
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
        self._copy.copy_(tensor.detach(), non_blocking=on_gpu)
        self._arrived = torch.cuda.Event() if on_gpu else None
        if self._arrived:
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self._copy.nbytes

    def numpy(self) -> NDArray[Any]:
        """The numbers, when they have arrived; bfloat16 as the bits of uint16."""
        if self._arrived:
            self._arrived.synchronize()
        if self._copy.dtype == torch.bfloat16:
            return self._copy.view(torch.uint16).numpy()
        return self._copy.numpy()


class KeptCall:
    """Q, K, log-sum-exp and witness of some rows of a call, and the proof that they fit together.

    All queries of all rows if `row` is None; else of that row the proven ones, for the proof alone.
    """

    def __init__(self, seen: Seen, record: StepRecord, row: int | None) -> None:
        queries = list(record.proven_queries)
        rows = slice(None) if row is None else slice(row, row + 1)
        self.queries: Sequence[int] = queries
        q, k = seen.operands.q[rows], seen.operands.k[rows]
        if row is None:
            lse = seen.lse
        else:
            self.queries = range(len(queries))
            q, lse = q[:, :, queries], seen.lse_of(rows, queries)
        values, outputs = projected(seen.v[rows], seen.output[rows][:, :, queries])
        self.layer, self.row = seen.site.index, row
        self._numbers, self._scale = DTYPES[q.dtype], seen.operands.scale
        self._parts = [HostCopy(part) for part in (q, k, lse, values, outputs)]

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return sum(part.nbytes for part in self._parts)

    def parts(self, *shape: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], Witness]:
        """q, k and log-sum-exp as they are stored, and the witness, with the rows as `shape`."""
        q, k, lse, values, outputs = (
            array.reshape(*shape, *array.shape[1:])
            for array in (part.numpy() for part in self._parts)
        )
        return q, k, lse, Witness(values, outputs)

    def errors(self) -> dict[str, NDArray[np.float32]]:
        """The proof of the kept rows, by name (R, H)."""
        q, k, lse, witness = self.parts(-1)
        q, lse = q[:, :, self.queries], lse[:, :, self.queries]
        return proof.errors(
            widen(q, self._numbers), widen(k, self._numbers), lse, witness, self._scale
        )
