"""`watch`: see the attention of any PyTorch model while it runs.

    with watch(model) as seen:
        model(x, t, y)
    seen.stats["entropy"]  # (forward, sample, site, head)

Shapes: B rows, L sites, H heads, N queries, M keys.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import xarray
from torch import Tensor, nn

from ditscope.attention.around import Around, checked_module
from ditscope.attention.capture import Capture, Moment, Seen
from ditscope.attention.census import Census, refuse_fused, take_census, warn_of_unseen
from ditscope.attention.metrics.defined import refuse_undefined
from ditscope.attention.metrics.plan import Plan, plan_of
from ditscope.attention.metrics.sampling import refuse_unsampled, sampled_defaults
from ditscope.attention.operands import Operands
from ditscope.attention.rows import attention_columns, attention_rows
from ditscope.attention.stats import statistics_and_lse
from ditscope.core.keep import Keep, KeepRecord
from ditscope.core.sites import Site, TokenGrid
from ditscope.core.standard_error import described
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.errors import BadRequest, NothingWatched, listed

KEPT_BYTES = 2**30
"""Queries and keys of the last forward are kept up to this size, if no sites are named."""

Kept = dict[str, tuple[Operands, Tensor | None]]
"""By site: what makes its map; its log-sum-exp (B, H, N), if that was found on the way."""


def watch(
    model: nn.Module,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    detail: str = "heads",
    keep: Sequence[str] | None = None,
    grid: TokenGrid | Mapping[str, TokenGrid] | None = None,
    only: Keep | None = None,
) -> Watch:
    """Watch every forward of `model` inside a `with` block; what it computes stays the same.

    Args:
        model: Any module whose attention calls `F.scaled_dot_product_attention`.
        metrics: Names in `ditscope.core.statistics.STATISTICS`, your own among them. With a sample
            of queries the default is those of the default metrics that it can tell.
        detail: "heads", or "tokens" to keep the numbers of single tokens too, for `tokens`.
        keep: Globs of site names whose queries and keys are kept in every forward, for `rows`. By
            default those of all measured sites, of the last measured forward alone, if they take
            1 GiB or less.
        grid: The grid of image tokens, if the model is not one whose grid is known: for all
            self-attention, or per glob of site names. Distances need it.
        only: Which layers, heads and forwards are measured, and how many queries of each head; see
            `Keep`. What is left out costs nothing and is NaN in `stats`. Queries are drawn by
            forward and layer, the same ones every time.

    Raises:
        BadRequest: model is no module, there is no such metric or detail, or a sample of queries
            cannot tell it; later, on the first forward, a glob or grid fits no site, a layer or
            head does not exist, or a metric can have a value at none.
        NothingWatched: from a forward in the block, if no attention can be seen in it or not what
            the census expects; at the end of the block, if there was no forward.
    """
    only = only or Keep()
    if only.branches is not None:
        raise BadRequest(
            "a forward does not say which branch its rows are",
            field="Keep.branches",
            fix="leave it out, or record a sampling: sample(..., record=..., only=Keep(...))",
        )
    if only.queries is not None and tuple(metrics) == DEFAULT_METRICS:
        metrics = sampled_defaults()
    plan = plan_of(metrics, detail)
    if only.queries is not None:
        refuse_unsampled(plan)
    if between := (*plan.steps, *plan.branches):
        raise BadRequest(
            f"{listed(each.name for each in between)}: a forward does not say its step and branch",
            field="metrics",
            fix="record a sampling with these metrics: sample(..., record=..., metrics=[...])",
        )
    return Watch(checked_module(model, "watch"), plan, keep, grid, only)


@dataclass(frozen=True)
class _Forward:
    """A forward that has run."""

    values: dict[str, Tensor]  # (B, L, H) each
    tokens: dict[str, Tensor]  # (B, L, H, tokens) each
    kept: Kept


class Watch:
    """What was seen of a model. Made by `watch`; can be read inside the block and after it.

    Guarantees that the model is left as it was, also by an exception.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        keep: Sequence[str] | None,
        grid: TokenGrid | Mapping[str, TokenGrid] | None,
        only: KeepRecord,
    ) -> None:
        self._model, self._grid = model, grid
        self._plan, self._only = plan, only
        self._begun = 0
        self._keep = None if keep is None else tuple(keep)
        self._census: Census | None = None
        self._forwards: list[_Forward] = []
        self._lock = threading.Lock()
        self._around = Around(model, self._watched)

    def __enter__(self) -> Self:
        self._around.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._around.__exit__(kind, error, traceback)
        if kind is None and not self._forwards:
            raise NothingWatched(
                f"{type(self._model).__name__} was not called in the block",
                fix="call the very module that is watched, not a copy or a part of it",
            )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The attention calls of one forward, in order, with their shapes and token grids."""
        return self._seen().sites

    @property
    def not_seen(self) -> tuple[str, ...]:
        """Modules that are attention by the name of their type, but made no call that is seen.

        The first forward warns of them.
        """
        return tuple(self._seen().not_seen)

    @property
    def stats(self) -> xarray.Dataset:
        """The statistics (forward, sample, site, head), float32.

        Beside a metric estimated from a sample of queries stands its standard error, as
        `entropy_error`. NaN where nothing was to be measured, where a statistic is undefined, and
        where a forward or a site has fewer samples or heads than another. `sample` counts the rows
        of the attention call's batch.
        """
        dims = ("forward", "sample", "site", "head")
        return _dataset([each.values for each in self._forwards], dims, self.sites)

    @property
    def tokens(self) -> xarray.Dataset:
        """Metrics of single tokens (forward, sample, site, head, token), of `detail="tokens"`.

        A token is a query, or of metrics of what is received a key. NaN as in `stats`.
        """
        dims = ("forward", "sample", "site", "head", "token")
        return _dataset([each.tokens for each in self._forwards], dims, self.sites)

    def rows(self, site: str, query: int | Sequence[int], forward: int = -1) -> xarray.DataArray:
        """Where some queries of a site look: (sample, head, query, key), exact, sums to 1.

        Raises:
            BadRequest: no such site, token or forward, or it was not kept.
        """
        queries = [query] if isinstance(query, int) else list(query)
        rows = attention_rows(*self._kept(site, forward), queries)
        dims = ("sample", "head", "query", "key")
        return xarray.DataArray(rows.cpu().numpy(), {"query": queries}, dims, name="attention")

    def columns(self, site: str, key: int | Sequence[int], forward: int = -1) -> xarray.DataArray:
        """Who looks at some keys of a site: (sample, head, query, key). Errors as for `rows`."""
        keys = [key] if isinstance(key, int) else list(key)
        columns = attention_columns(*self._kept(site, forward), keys)
        dims = ("sample", "head", "query", "key")
        return xarray.DataArray(columns.cpu().numpy(), {"key": keys}, dims, name="attention")

    def _seen(self) -> Census:
        if self._census is None or not self._forwards:
            raise BadRequest("no forward was watched to its end yet")
        return self._census

    def _kept(self, site: str, forward: int) -> tuple[Operands, Tensor]:
        names = [each.name for each in self.sites]
        if site not in names:
            raise BadRequest(f"there is no site {site!r}", field="site", expected=listed(names))
        count = len(self._forwards)
        if not -count <= forward < count:
            raise BadRequest(
                f"there is no forward {forward}",
                field="forward",
                expected=f"-1, or 0 to {count - 1}",
            )
        kept = self._forwards[forward].kept
        if site not in kept:
            raise BadRequest(
                f"the queries and keys of {site!r} were not kept in forward {forward}",
                fix=f"watch(model, keep=[{site!r}]) keeps them in every forward; by default they "
                f"are kept of the last forward, if all take {KEPT_BYTES:,} bytes or less",
            )
        attention, lse = kept[site]
        if lse is None:
            lse = statistics_and_lse(attention, None, ())[1]
            kept[site] = attention, lse
        return attention, lse

    @contextmanager
    def _watched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        """Around one forward."""
        with self._lock:
            if self._census is None:
                census = take_census(self._model, args, kwargs, self._grid)
                self._check_globs(census)
                self._only.check(census.sites)
                refuse_undefined(
                    self._plan.names,
                    [site for site in census.sites if self._only.heads_at(site)],
                    sampled=self._only.queries is not None,
                )
                warn_of_unseen(census, "watched")
                self._census = census
            number, self._begun = self._begun, self._begun + 1
        refuse_fused(self._census.fused)
        kept: Kept = {}
        measured = self._only.has_step(number)
        sites = {site.index for site in self._census.sites if self._only.heads_at(site)}
        keeper = _Keeper(kept, self._keep, sites if measured else set())
        with Capture(
            self._census.sites,
            self._plan.names,
            on_attention=keeper,
            detail="tokens" if self._plan.tokens else "heads",
            moment=Moment(step=number),
            only=self._only,
        ) as capture:
            yield
        forward = _Forward(capture.statistics(), capture.tokens(), kept)
        with self._lock:
            if self._keep is None and measured:
                for earlier in self._forwards:
                    earlier.kept.clear()
            self._forwards.append(forward)

    def _check_globs(self, census: Census) -> None:
        names = [site.name for site in census.sites]
        idle = [
            glob for glob in self._keep or () if not any(fnmatchcase(name, glob) for name in names)
        ]
        if idle:
            raise BadRequest(
                f"{listed(idle)} fits no site", field="keep", expected=f"globs of {listed(names)}"
            )


class _Keeper:
    """Keeps copies of what makes the maps of the asked sites, in `kept`."""

    def __init__(self, kept: Kept, globs: tuple[str, ...] | None, measured: set[int]) -> None:
        self._kept, self._globs, self._measured = kept, globs, measured
        self._bytes = 0

    def __call__(self, seen: Seen) -> None:
        """Copy: the model may write over its tensors, and a view would keep all it is part of."""
        site, attention, lse = seen.site, seen.operands, seen.found_lse
        if self._globs is not None:
            if any(fnmatchcase(site.name, glob) for glob in self._globs):
                self._kept[site.name] = (_copied(attention), lse)
            return
        if site.index not in self._measured:
            return
        self._bytes += attention.q.nbytes + attention.k.nbytes
        if self._bytes <= KEPT_BYTES:
            self._kept[site.name] = (_copied(attention), lse)
        else:
            self._kept.clear()


def _dataset(
    forwards: list[dict[str, Tensor]], dims: tuple[str, ...], sites: tuple[Site, ...]
) -> xarray.Dataset:
    """What was measured in each forward, (B, L, H, ...) by name."""
    variables = {}
    for name in forwards[0] if forwards else ():
        found = [each[name].numpy() for each in forwards]
        shape = [max(sizes) for sizes in zip(*(each.shape for each in found), strict=True)]
        table = np.full((len(found), *shape), np.nan, np.float32)
        for index, each in enumerate(found):
            table[(index, *map(slice, each.shape))] = each
        about = described(name)
        assert about is not None
        attributes = {
            "long_name": about.long_name,
            "units": about.unit,
            "formula": about.formula,
            "source": about.source,
        }
        variables[name] = xarray.Variable(dims, table, attributes)
    return xarray.Dataset(variables, coords={"site": [site.name for site in sites]})


def _copied(attention: Operands) -> Operands:
    q, k, mask = (
        None if each is None else each.clone(memory_format=torch.contiguous_format)
        for each in (attention.q, attention.k, attention.mask)
    )
    return replace(attention, q=q, k=k, mask=mask)
