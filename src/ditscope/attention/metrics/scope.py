"""Where a metric is measured: what a call's tokens are. And a tile: part of its map.

Shapes: t rows times heads, n queries of a tile, M keys, I image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditscope.core.sites import TokenGrid, TokenSegment


@dataclass(frozen=True)
class Scope:
    """The tokens of one attention call."""

    heads: int
    queries: int
    keys: int
    device: torch.device
    grid: TokenGrid | None = None  # of the queries as of the keys
    segments: tuple[TokenSegment, ...] = ()  # of the keys, beside the image tokens


class Tile:
    """Attention of some queries of some heads: what a metric reduces, and must not change.

    `p` (t, n, M) float32 are the weights, zero for a query that sees no key. Of a metric that needs
    `image`, queries and keys are the image tokens alone: p (t, n, I) sums to one over them, and
    `queries` counts patches. Heads are neighbours in t.

    `queries` says which they are: a slice, or, of a sample of queries, their indices (n,). A metric
    of your own is always given a slice.
    """

    def __init__(
        self,
        p: Tensor,
        scope: Scope,
        queries: slice | Tensor,
        *,
        lse: Tensor | None = None,
        scores: Tensor | None = None,
        largest: Tensor | None = None,
    ) -> None:
        self.p, self.scope, self.queries = p, scope, queries
        self._lse, self._scores, self._largest = lse, scores, largest
        self._weighted: Tensor | None = None

    def one(self, place: int, query: int) -> Tile:
        """The tile of one of its queries: the one at `place`, which is `query`."""
        here = slice(place, place + 1)
        lse, scores, largest = (
            None if each is None else each[:, here]
            for each in (self._lse, self._scores, self._largest)
        )
        if self._weighted is not None:  # is the memory of the scores
            scores = None
        tile = Tile(
            self.p[:, here],
            self.scope,
            slice(query, query + 1),
            lse=lse,
            scores=None if scores is None else scores.clone(),
            largest=largest,
        )
        tile._weighted = None if self._weighted is None else self._weighted[:, here]
        return tile

    @property
    def grid(self) -> TokenGrid:
        """The grid of the image tokens; of a metric that needs `image`, there is one."""
        assert self.scope.grid is not None
        return self.scope.grid

    @property
    def lse(self) -> Tensor:
        """Log-sum-exp of the scores (t, n), zero for a query that sees no key."""
        assert self._lse is not None, "only a tile over all keys has it"
        return self._lse

    @property
    def largest(self) -> Tensor:
        """The largest weight of each query (t, n)."""
        return self.p.amax(-1) if self._largest is None else self._largest

    @property
    def weighted_scores(self) -> Tensor:
        """Weight times score (t, n, M), made once, in the memory of the scores."""
        if self._weighted is None:
            assert self._scores is not None, "only a tile over all keys has it"
            self._weighted = self._scores.mul_(self.p)
        return self._weighted
