"""Watching one forward: its attention calls become rows of statistics, in the order of the census.

Shapes: B rows, L sites, H heads, N queries, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ditscope.attention.metrics.evidence import Measured
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.operands import Operands, operands, values_and_output
from ditscope.attention.pairs import compare, other_branch, taken
from ditscope.attention.seam import AttentionCall, Seam
from ditscope.attention.stats import measure
from ditscope.core.sites import Site
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.errors import NothingWatched, listed


@dataclass(frozen=True)
class Seen:
    """One attention call that has run. The tensors are the model's own: copy what is kept."""

    site: Site
    operands: Operands  # everything that makes its map
    lse: Tensor  # (B, H, N) float32, natural log
    v: Tensor  # (B, H, M, *)
    output: Tensor  # (B, H, N, *), of the model's own kernel


OnAttention = Callable[[Seen], None]


@dataclass
class Moment:
    """Which forward of a sampling this is: its branches, equal parts of the batch; the one before.

    `seen` fills with copies of what makes the map of each site, if a metric compares steps.
    """

    branches: tuple[str, ...] = ()
    before: Moment | None = None
    seen: list[Operands] = field(default_factory=list)

    def rows_before(self, count: int) -> list[int]:
        """Where each of the rows was in the forward before: -1 for a branch it did not have."""
        if self.before is None or not self.branches:
            return []
        size, had = count // len(self.branches), self.before.branches
        return [
            had.index(branch) * size + row if branch in had else -1
            for branch in self.branches
            for row in range(size)
        ]


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
        *,
        on_attention: OnAttention | None = None,
        detail: str = "heads",
        moment: Moment | None = None,
    ) -> None:
        """Prepare to watch one forward.

        Args:
            sites: From `census`.
            metrics: Names of registered metrics; none is allowed.
            on_attention: Called after each attention call.
            detail: "heads", or "tokens" to keep the numbers of single tokens too.
            moment: Which moment of a sampling the forward is, for metrics that compare two.

        Raises:
            BadRequest: there is no such metric.
        """
        self._sites, self._plan = tuple(sites), plan_of(metrics, detail)
        self._on_attention = on_attention
        self._moment = moment or Moment()
        self._seam: Seam | None = None  # only while entered: the two refer to each other
        self._calls = 0
        self._differing: list[str] = []
        self._found: list[Measured] = []  # per site

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
        names = self._plan.names
        tables = [
            torch.stack([each.heads[name] for name in names]) for each in self._found if names
        ]
        return dict(zip(names, _table(tables), strict=True)) if names else {}

    def tokens(self) -> dict[str, Tensor]:
        """By name (B, L, H, tokens) float32 on the CPU, of `detail="tokens"`; filled up likewise.

        A token is a query, or of metrics of what is received a key.
        """
        names = self._plan.token_names
        return {
            name: _table([each.tokens[name][None] for each in self._found])[0] for name in names
        }

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
        if not (self._plan.names or self._on_attention):
            return
        found = measure(attention, self._plan, site.grid, site.segments)
        put_out = self._put_out(output, attention)
        compared = self._compared(attention)
        self._found.append(replace(found, heads=found.heads | compared | put_out))
        if self._on_attention:
            v, output = values_and_output(call, output)
            self._on_attention(Seen(site, attention, found.lse, v, output))

    def _put_out(self, output: Tensor, attention: Operands) -> dict[str, Tensor]:
        """The metrics of what the call returned, which is laid out as its queries are."""
        wanted = self._plan.output
        if not wanted:
            return {}
        laid_out = output.reshape(*attention.q.shape[:3], output.shape[-1])
        return {metric.name: metric.of_output(laid_out) for metric in wanted}

    def _compared(self, attention: Operands) -> dict[str, Tensor]:
        """The metrics of this call and its counterpart in another branch or step."""
        plan, moment = self._plan, self._moment
        undefined = attention.q.new_full(attention.q.shape[:2], torch.nan, dtype=torch.float32)
        found = {metric.name: undefined for metric in (*plan.branches, *plan.steps)}
        if plan.branches and len(moment.branches) == 2:
            found |= compare(attention, other_branch(attention), plan.branches)
        if not plan.steps:
            return found
        index, rows = len(self._found), range(len(attention.q))
        if moment.before and (place := moment.rows_before(len(rows))):
            before = taken(moment.before.seen[index], [max(row, 0) for row in place])
            absent = torch.tensor([[row < 0] for row in place], device=attention.q.device)
            of_steps = compare(attention, before, plan.steps)
            found |= {
                name: value.masked_fill(absent, torch.nan) for name, value in of_steps.items()
            }
        moment.seen.append(taken(attention, rows))
        return found

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


def _table(found: list[Tensor]) -> Tensor:
    """Of each site (names, B, H, ...) -> (names, B, L, H, ...), filled up with NaN, on the CPU."""
    sizes = [max(each.shape[axis] for each in found) for axis in range(found[0].dim())]
    filled = []
    for each in found:
        missing = [size - have for size, have in zip(sizes, each.shape, strict=True)]
        padding = [part for count in reversed(missing) for part in (0, count)]
        filled.append(torch.nn.functional.pad(each, padding, value=torch.nan))
    return torch.stack(filled, dim=2).cpu()


def _shape(attention: Operands) -> str:
    _, heads, queries, width = attention.q.shape
    return f"{heads} heads of {width}, {queries} x {attention.k.shape[-2]} tokens"


def _shape_of(site: Site) -> str:
    return f"{site.heads} heads of {site.head_width}, {site.queries} x {site.keys} tokens"
