"""Watching one forward: its attention calls become rows of statistics, in the order of the census.

Shapes: B rows, L sites, H heads, N queries, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ditscope.attention.operands import Operands, operands
from ditscope.attention.seam import AttentionCall, Seam
from ditscope.attention.stats import statistics_and_lse
from ditscope.core.sites import Site
from ditscope.core.statistics import STATISTICS
from ditscope.errors import BadRequest, NothingWatched, listed

OnQK = Callable[[Site, Tensor, Tensor, Tensor], None]
"""(site, q (B, H, N, K), k (B, H, M, K), log-sum-exp (B, H, N) float32)."""

OnAttention = Callable[[Site, Operands, Tensor], None]
"""(site, everything that makes its map, log-sum-exp (B, H, N) float32)."""


def known_statistics(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if all are in `STATISTICS`; else BadRequest."""
    unknown = [name for name in names if name not in STATISTICS]
    if unknown:
        raise BadRequest(
            f"there is no statistic {listed(unknown)}",
            field="statistics",
            expected=f"some of {listed(STATISTICS)}",
        )
    return tuple(names)


class Capture:
    """A context around exactly one forward of a model whose sites are known.

        with Capture(sites, ("entropy",)) as capture:
            model(x, t, y)
        capture.statistics()["entropy"]  # (B, L, H)

    Guarantees that every call met the census: else leaving the context raises NothingWatched. An
    exception of the forward passes through as it is.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        statistics: Sequence[str] = tuple(STATISTICS),
        on_qk: OnQK | None = None,
        *,
        on_attention: OnAttention | None = None,
    ) -> None:
        """Prepare to watch one forward.

        Args:
            sites: From `census`.
            statistics: Names in `STATISTICS`; none is allowed.
            on_qk: Called after each attention call with its operands, which it may keep.
            on_attention: As on_qk, with the mask and the scale.

        Raises:
            BadRequest: there is no such statistic.
        """
        self._sites, self._names = tuple(sites), known_statistics(statistics)
        self._on_qk, self._on_attention = on_qk, on_attention
        self._seam: Seam | None = None  # only while entered: the two refer to each other
        self._calls = 0
        self._differing: list[str] = []
        self._found: list[dict[str, Tensor]] = []  # per site, (B, H) each

    def __enter__(self) -> Self:
        self._seam = Seam(self._observe)
        self._seam.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        seam, self._seam = self._seam, None
        if seam is not None:
            seam.__exit__(kind, error, traceback)
        if kind is None:
            self._check()

    def statistics(self) -> dict[str, Tensor]:
        """By name (B, L, H) float32 on the CPU, copied there all at once.

        Where sites differ in rows or heads, the smaller are filled up with NaN.
        """
        if not self._names:
            return {}
        found = [torch.stack([each[name] for name in self._names]) for each in self._found]
        rows, heads = (max(each.shape[axis] for each in found) for axis in (1, 2))
        filled = [
            torch.nn.functional.pad(
                each, (0, heads - each.shape[2], 0, rows - each.shape[1]), value=torch.nan
            )
            for each in found
        ]
        table = torch.stack(filled, dim=2).cpu()  # (names, B, L, H)
        return dict(zip(self._names, table, strict=True))

    def _observe(self, call: AttentionCall, output: Tensor) -> None:
        if isinstance(call.q, FakeTensor):  # the census of a part that is watched as well
            return
        index, self._calls = self._calls, self._calls + 1
        attention = operands(call)
        if index >= len(self._sites):
            self._differing.append(f"one more call, {_shape(attention)}")
            return
        site = self._sites[index]
        if _shape_of(site) != _shape(attention):
            self._differing.append(f"{site.name}: {_shape(attention)} instead of {_shape_of(site)}")
            return
        wants_lse = self._on_qk or self._on_attention
        if not (self._names or wants_lse):
            return
        values, lse = statistics_and_lse(attention, site.grid, self._names)
        self._found.append(values)
        if self._on_qk:
            self._on_qk(site, attention.q, attention.k, lse)
        if self._on_attention:
            self._on_attention(site, attention, lse)

    def _check(self) -> None:
        missing = [site.name for site in self._sites[self._calls :]]
        problems = self._differing + [f"{name}: not seen" for name in missing]
        if problems or not self._sites:
            raise NothingWatched(
                f"the forward made {self._calls} attention calls, the census expects "
                f"{len(self._sites)}: {listed(problems)}",
                fix="take the census again if the model, its mode or its input has changed; run "
                "attention in the thread and with the backend that were there for the census",
            )


def _shape(attention: Operands) -> str:
    _, heads, queries, width = attention.q.shape
    return f"{heads} heads of {width}, {queries} x {attention.k.shape[-2]} tokens"


def _shape_of(site: Site) -> str:
    return f"{site.heads} heads of {site.head_width}, {site.queries} x {site.keys} tokens"
