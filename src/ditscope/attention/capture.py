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

from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.operands import Operands, operands
from ditscope.attention.seam import AttentionCall, Seam
from ditscope.attention.stats import measure
from ditscope.core.sites import Site
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.errors import NothingWatched, listed

OnQK = Callable[[Site, Tensor, Tensor, Tensor], None]
"""(site, q (B, H, N, K), k (B, H, M, K), log-sum-exp (B, H, N) float32)."""

OnAttention = Callable[[Site, Operands, Tensor], None]
"""(site, everything that makes its map, log-sum-exp (B, H, N) float32)."""


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
        metrics: Sequence[str] = DEFAULT_METRICS,
        on_qk: OnQK | None = None,
        *,
        on_attention: OnAttention | None = None,
    ) -> None:
        """Prepare to watch one forward.

        Args:
            sites: From `census`.
            metrics: Names of registered metrics; none is allowed.
            on_qk: Called after each attention call with its operands, which it may keep.
            on_attention: As on_qk, with the mask and the scale.

        Raises:
            BadRequest: there is no such metric.
        """
        self._sites, self._plan = tuple(sites), plan_of(metrics)
        self._on_qk, self._on_attention = on_qk, on_attention
        self._seam = Seam(self._observe)
        self._calls = 0
        self._differing: list[str] = []
        self._found: list[dict[str, Tensor]] = []  # per site, (B, H) each

    def __enter__(self) -> Self:
        self._seam.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._seam.__exit__(kind, error, traceback)
        if kind is None:
            self._check()

    def statistics(self) -> dict[str, Tensor]:
        """By name (B, L, H) float32 on the CPU, copied there all at once.

        Where sites differ in rows or heads, the smaller are filled up with NaN.
        """
        names = self._plan.names
        if not names:
            return {}
        found = [torch.stack([each[name] for name in names]) for each in self._found]
        rows, heads = (max(each.shape[axis] for each in found) for axis in (1, 2))
        filled = [
            torch.nn.functional.pad(
                each, (0, heads - each.shape[2], 0, rows - each.shape[1]), value=torch.nan
            )
            for each in found
        ]
        table = torch.stack(filled, dim=2).cpu()  # (names, B, L, H)
        return dict(zip(names, table, strict=True))

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
        if not (self._plan.names or wants_lse):
            return
        found = measure(attention, self._plan, site.grid, site.segments)
        self._found.append(found.heads)
        if self._on_qk:
            self._on_qk(site, attention.q, attention.k, found.lse)
        if self._on_attention:
            self._on_attention(site, attention, found.lse)

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
