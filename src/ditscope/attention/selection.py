"""Which part of each call of one forward is measured, and how what is found fills its place.

Shapes: B rows, H heads, b and h those that are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ditscope.attention.operands import Operands
from ditscope.attention.strata import Drawn, draw
from ditscope.core.keep import KeepRecord
from ditscope.core.sites import Site


@dataclass(frozen=True)
class Part:
    """What is measured of one call: some heads of some branches, from all queries or a sample."""

    measured: bool  # else the call is counted and otherwise left alone
    heads: tuple[int, ...]
    all_heads: bool
    branches: tuple[int, int, int] = (0, 1, 1)  # from, to, of how many equal parts of the rows
    drawn: Drawn | None = None  # None: every query
    copied: bool = False  # the next step is compared with this one

    @property
    def whole(self) -> bool:
        """Whether it is all rows and heads."""
        first, last, count = self.branches
        return self.all_heads and last - first == count

    def rows(self, count: int) -> slice:
        """Those of `count` rows that are measured."""
        first, last, parts = self.branches
        return slice(first * count // parts, last * count // parts)

    def of_heads(self, attention: Operands) -> Operands:
        """The measured heads, all rows."""
        if self.all_heads:
            return attention
        heads, mask = self._heads, attention.mask
        if mask is not None and mask.shape[1] > 1:
            mask = mask[:, heads]
        return replace(attention, q=attention.q[:, heads], k=attention.k[:, heads], mask=mask)

    def of_rows(self, attention: Operands) -> Operands:
        """The measured rows, all heads."""
        rows, mask = self.rows(len(attention.q)), attention.mask
        if mask is not None and len(mask) > 1:
            mask = mask[rows]
        return replace(attention, q=attention.q[rows], k=attention.k[rows], mask=mask)

    def of(self, values: Tensor) -> Tensor:
        """The measured rows and heads of values (B, H, ...)."""
        return values[self.rows(len(values))][:, self._heads]

    def filled(self, found: Tensor, rows: int, heads: int) -> Tensor:
        """(names, b, h, ...) in its place in (names, B, H, ...), with NaN around it."""
        if self.whole:
            return found
        everywhere = found.new_full((len(found), rows, heads, *found.shape[3:]), torch.nan)
        everywhere[:, self.rows(rows), self._heads] = found
        return everywhere

    @property
    def _heads(self) -> slice | list[int]:
        if self.all_heads:
            return slice(None)
        first, last = self.heads[0], self.heads[-1] + 1
        return slice(first, last) if len(self.heads) == last - first else list(self.heads)


def parts_of(
    sites: Sequence[Site],
    only: KeepRecord,
    *,
    branches: Sequence[str] = (),
    step: int = 0,
    seed: int = 0,
) -> list[Part]:
    """The part of each call at `step` that `only` selects.

    Args:
        sites: From `census`.
        only: What is measured.
        branches: Equal parts of the rows of the forward; none of a bare model.
        step: Evaluation of the sampling, or number of the forward.
        seed: Of the sampling.
    """
    here = [index for index, branch in enumerate(branches) if only.has_branch(branch)]
    now = only.has_step(step) and bool(here or not branches)
    rows = (here[0], here[-1] + 1, len(branches)) if here else (0, 1, 1)
    parts = []
    for site in sites:
        heads = only.heads_at(site)
        drawn = None
        if heads and now and only.queries is not None:
            drawn = draw(site, only.queries, seed=seed, step=step)
        part = Part(
            measured=bool(heads) and now,
            heads=heads,
            all_heads=len(heads) == site.heads,
            branches=rows,
            drawn=drawn,
            copied=bool(heads) and only.has_step(step + 1),
        )
        parts.append(part)
    return parts
