"""Watching one forward: its attention calls become rows of statistics, in the order of the census.

Shapes: B rows, L sites, H heads, N queries, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.metrics.registry import Metric, find
from ditscope.attention.metrics.sampling import estimated, refuse_unsampled
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import Operands, operands, values_and_output
from ditscope.attention.pairs import compare, other_branch, taken
from ditscope.attention.rows import rows_lse
from ditscope.attention.sampled import compare_sampled, measure_sampled
from ditscope.attention.seam import AttentionCall, Seam
from ditscope.attention.selection import Part, parts_of
from ditscope.attention.stats import measure
from ditscope.core.axes import KEY
from ditscope.core.keep import EVERYTHING, KeepRecord
from ditscope.core.sites import Site
from ditscope.core.standard_error import error_name
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.errors import NothingWatched, listed


@dataclass(frozen=True)
class Seen:
    """One attention call that has run. The tensors are the model's own: copy what is kept."""

    site: Site
    operands: Operands  # everything that makes its map
    found_lse: Tensor | None  # (B, H, N) float32, natural log, if all of it was found on the way
    v: Tensor  # (B, H, M, *)
    output: Tensor  # (B, H, N, *), of the model's own kernel

    @property
    def lse(self) -> Tensor:
        """Log-sum-exp (B, H, N) float32, natural log; computed now if it was not found."""
        if self.found_lse is not None:
            return self.found_lse
        return measure(self.operands, plan_of(()), self.site.grid, self.site.segments).lse

    def lse_of(self, rows: slice, queries: list[int]) -> Tensor:
        """That of some queries of some rows: (b, H, n)."""
        if self.found_lse is not None:
            return self.found_lse[rows][:, :, queries]
        return rows_lse(self.operands, rows, queries)


@dataclass(frozen=True)
class _Found:
    """What was measured of one call, by name."""

    heads: dict[str, Tensor]  # (b, h)
    tokens: dict[str, Tensor]  # (b, h, tokens)
    device: torch.device


OnAttention = Callable[[Seen], None]


@dataclass
class Moment:
    """Which forward of a sampling this is: its branches, equal parts of the batch; the one before.

    `seen` fills, by site, with copies of what makes the map, if a metric compares steps.
    """

    branches: tuple[str, ...] = ()
    before: Moment | None = None
    step: int = 0  # evaluation of the sampling, or forward
    seed: int = 0  # of the sampling
    seen: dict[int, Operands] = field(default_factory=dict)

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
        only: KeepRecord = EVERYTHING,
    ) -> None:
        """Prepare to watch one forward.

        Args:
            sites: From `census`.
            metrics: Names of registered metrics; none is allowed.
            on_attention: Called after each attention call.
            detail: "heads", or "tokens" to keep the numbers of single tokens too.
            moment: Which moment of a sampling the forward is, for metrics that compare two, and for
                what is measured of some steps or branches, or of a sample of queries.
            only: What is measured; all calls are counted.

        Raises:
            BadRequest: there is no such metric, or a sample of queries cannot tell it.
        """
        self._sites, self._plan = tuple(sites), plan_of(metrics, detail)
        self._estimated = () if only.queries is None else estimated(self._plan.names)
        if only.queries is not None:
            refuse_unsampled(self._plan)
        self._on_attention = on_attention
        self._moment = moment or Moment()
        self._seam: Seam | None = None  # only while entered: the two refer to each other
        self._calls = 0
        self._differing: list[str] = []
        self._parts = parts_of(
            self._sites,
            only,
            branches=self._moment.branches,
            step=self._moment.step,
            seed=self._moment.seed,
        )
        self._rows: list[int] = []  # of each call
        self._found: dict[int, _Found] = {}  # by site

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

    @property
    def names(self) -> tuple[str, ...]:
        """What `statistics` tells: the metrics, and the standard errors of those estimated."""
        return (*self._plan.names, *map(error_name, self._estimated))

    def statistics(self) -> dict[str, Tensor]:
        """By name (B, L, H) float32 on the CPU, copied there all at once.

        NaN where nothing was measured. Where sites differ in rows or heads, the smaller are filled
        up with NaN.
        """
        names = self.names
        if not names:
            return {}
        tables = [
            self._placed(site, len(names), lambda found: [found.heads[name] for name in names])
            for site in self._sites
        ]
        return dict(zip(names, _table(tables), strict=True))

    def tokens(self) -> dict[str, Tensor]:
        """By name (B, L, H, tokens) float32 on the CPU, of `detail="tokens"`; filled up likewise.

        A token is a query, or of metrics of what is received a key.
        """
        return {name: self._tokens_of(name) for name in self._plan.token_names}

    def _tokens_of(self, name: str) -> Tensor:
        of_keys = find(name).statistic.axis == KEY
        tables = [
            self._placed(
                site, 1, lambda found: [found.tokens[name]], site.keys if of_keys else site.queries
            )
            for site in self._sites
        ]
        return _table(tables)[0]

    def _placed(
        self,
        site: Site,
        count: int,
        numbers: Callable[[_Found], list[Tensor]],
        *tokens: int,
    ) -> Tensor:
        """The `count` numbers of a site, (count, B, H, ...): NaN where nothing was measured."""
        rows, found = self._rows[site.index], self._found.get(site.index)
        if found is None:
            device = next((each.device for each in self._found.values()), None)
            return torch.full((count, rows, site.heads, *tokens), torch.nan, device=device)
        stacked = torch.stack(numbers(found))
        return self._parts[site.index].filled(stacked, rows, site.heads)

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
        self._rows.append(len(attention.q))
        # Below, by `site.index`: what is filed under `index` Dynamo files under the next one.
        part, lse = self._parts[index], None
        if self._plan.names and part.measured:
            self._found[site.index], lse = self._measured(attention, output, site)
        if self._plan.steps and part.copied:
            kept = part.of_heads(attention)
            self._moment.seen[site.index] = taken(kept, range(len(kept.q)))
        if self._on_attention:
            v, output = values_and_output(call, output)
            self._on_attention(Seen(site, attention, lse, v, output))

    def _measured(
        self, attention: Operands, output: Tensor, site: Site
    ) -> tuple[_Found, Tensor | None]:
        """What is found of the measured part of a call; the log-sum-exp, if it is all of it."""
        part, plan = self._parts[site.index], self._plan
        several = part.of_rows(attention if plan.all_heads else part.of_heads(attention))
        tokens: dict[str, Tensor] = {}
        lse = None
        if part.drawn is None:
            found = measure(several, plan, site.grid, site.segments)
            heads, tokens, lse = found.heads, found.tokens, found.lse
        else:
            _, count, queries, _ = several.q.shape
            keys, device = several.k.shape[2], several.q.device
            scope = Scope(count, queries, keys, device, site.grid, site.segments)
            heads = measure_sampled(several, plan, scope, part.drawn)
        if plan.all_heads and not part.all_heads:  # they are compared with each other
            heads, tokens = (
                {name: value[:, list(part.heads)] for name, value in each.items()}
                for each in (heads, tokens)
            )
        heads = heads | self._compared(attention, part, site.index)
        heads |= self._put_out(output, attention, part)
        for name in self._estimated:
            if (error := error_name(name)) not in heads:  # all queries were looked at
                heads[error] = heads[name] - heads[name]  # zero; NaN stays NaN
        whole = part.whole and lse is not None
        return _Found(heads, tokens, attention.q.device), lse if whole else None

    def _put_out(self, output: Tensor, attention: Operands, part: Part) -> dict[str, Tensor]:
        """The metrics of what the call returned, which is laid out as its queries are."""
        wanted = self._plan.output
        if not wanted:
            return {}
        laid_out = output.reshape(*attention.q.shape[:3], output.shape[-1])
        return {metric.name: metric.of_output(part.of(laid_out)) for metric in wanted}

    def _compared(self, attention: Operands, part: Part, index: int) -> dict[str, Tensor]:
        """The metrics of this call and its counterpart in another branch or step."""
        plan, moment = self._plan, self._moment
        if not (plan.branches or plan.steps):
            return {}
        heads = part.of_heads(attention)
        here, rows = part.of_rows(heads), range(len(attention.q))
        undefined = here.q.new_full(here.q.shape[:2], torch.nan, dtype=torch.float32)
        found = {metric.name: undefined for metric in (*plan.branches, *plan.steps)}
        if plan.branches and len(moment.branches) == 2:
            other = part.of_rows(other_branch(heads))
            found |= _pair(here, other, plan.branches, part)
        if (
            moment.before
            and index in moment.before.seen
            and (place := moment.rows_before(len(rows)))
        ):
            before = taken(moment.before.seen[index], [max(row, 0) for row in place])
            absent = torch.tensor([[row < 0] for row in place], device=attention.q.device)
            absent = absent[part.rows(len(rows))]
            of_steps = _pair(here, part.of_rows(before), plan.steps, part)
            found |= {
                name: value.masked_fill(absent, torch.nan) for name, value in of_steps.items()
            }
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


def _pair(
    first: Operands, second: Operands, metrics: tuple[Metric, ...], part: Part
) -> dict[str, Tensor]:
    if part.drawn is None:
        return compare(first, second, metrics)
    return compare_sampled(first, second, metrics, part.drawn)


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
