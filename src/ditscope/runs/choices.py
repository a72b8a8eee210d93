"""What is asked of a run, as indices: of axes (one, several, all, their mean) and of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ditscope.core.axes import LAYER, QUERY
from ditscope.core.integers import as_index
from ditscope.core.sites import Site, TokenGrid
from ditscope.errors import BadRequest, foreign, listed
from ditscope.runs.attention_rows import Tokens

ALL, MEAN = "all", "mean"


@dataclass(frozen=True)
class Choice:
    """Which places along an axis, and what becomes of it."""

    indices: tuple[int, ...]
    stays: bool  # it is an axis of the result; else one place, or the mean over all
    asked: object

    @property
    def size(self) -> int:
        """Length of the axis in the result."""
        return len(self.indices) if self.stays else 1

    def position(self, number: int) -> int:
        """Where the `number`-th of `indices` goes along the axis of the result."""
        return number if self.stays else 0


def chosen(name: str, asked: Any, places: Sequence[int], count: int) -> Choice:
    """Places of an axis of `count`: an index, some of them, "all" or "mean" (both of `places`).

    Raises:
        BadRequest: an index out of range, none at all, or something else.
    """
    if isinstance(asked, str) and asked in (ALL, MEAN):
        found = Choice(tuple(places), asked == ALL, asked)
    elif isinstance(asked, slice):
        found = Choice(tuple(range(count)[asked]), True, asked)
    elif isinstance(asked, Iterable) and not isinstance(asked, str):
        found = Choice(tuple(index_of(name, each, count) for each in asked), True, asked)
    else:
        index = index_of(name, asked, count, f'several, "{ALL}" or "{MEAN}"')
        return Choice((index,), False, index)
    if not found.indices:
        raise BadRequest(f"no {name} is left", field=name, expected="at least one")
    return found


def index_of(name: str, value: object, count: int, others: str = "") -> int:
    """`value` as an index below `count`. Raises BadRequest, which names what else is allowed."""
    try:
        index = as_index(value)
    except TypeError:
        index = -1
    if not 0 <= index < count:
        expected = f"an index from 0 to {count - 1}" if count else f"a run with a {name}"
        expected += f", {others}" if others and count else ""
        raise BadRequest(f"{name} {foreign(value)}", field=name, expected=expected)
    return index


def layer_of(sites: Sequence[Site], asked: object) -> object:
    """The index of the site of that name; anything that is no name comes back as it is."""
    if not isinstance(asked, str) or asked in (ALL, MEAN):
        return asked
    named = [site.index for site in sites if site.name == asked]
    if len(named) != 1:
        raise BadRequest(
            f"{len(named)} sites are called {foreign(repr(asked))}",
            field=LAYER,
            expected=f"an index, or one of {listed(site.name for site in sites)}",
        )
    return named[0]


def tokens_of(site: Site, asked: Any, axis: str) -> Tokens:
    """The tokens of a point, box or mask, or all of them. Weights of queries add up to one.

    Args:
        site: whose tokens.
        asked: (y, x) of a patch; the index of a token; the box (top, left, bottom, right) in
            patches, the last two exclusive; a mask (y, x) of the grid, or of a picture that the
            grid divides evenly: bool, or how much each patch counts; or "mean" for all tokens.
        axis: `query` or `key`; of keys the shares are added up, so weights are as they are.

    Raises:
        BadRequest: it is none of these or out of range; the message names the range.
    """
    count = site.queries if axis == QUERY else site.keys
    if isinstance(asked, str) and asked == MEAN and axis == QUERY:
        return Tokens(np.arange(count), np.full(count, 1 / count))
    if not (isinstance(asked, Sequence | np.ndarray) or hasattr(asked, "dims")) or isinstance(
        asked, str
    ):
        return Tokens(np.array([index_of(axis, asked, count)]), np.ones(1))
    if site.grid is None:
        raise BadRequest(
            f"{site.name} has no known patches", field=axis, expected="the index of a token"
        )
    values = np.asarray(asked)
    if values.ndim == 2:
        weights = _mask_weights(values, site.grid, axis)
    elif values.shape == (4,):
        weights = _box_weights(asked, site.grid, axis)
    else:
        return Tokens(np.array([_patch(asked, site.grid, axis)]), np.ones(1))
    if axis == QUERY:
        weights = weights / weights.sum()
    index = np.flatnonzero(weights)
    return Tokens(site.grid.start + index, weights.ravel()[index])


def _patch(asked: Any, grid: TokenGrid, axis: str) -> int:
    try:
        y, x = (as_index(part) for part in asked)
        return grid.token(y, x)
    except (TypeError, ValueError, IndexError):
        raise BadRequest(
            f"patch {foreign(asked)}",
            field=axis,
            expected=f"(y, x) from (0, 0) to {(grid.height - 1, grid.width - 1)}",
        ) from None


def _box_weights(asked: Any, grid: TokenGrid, axis: str) -> np.ndarray:
    try:
        top, left, bottom, right = (as_index(part) for part in asked)
    except TypeError:
        top = left = bottom = right = -1
    if not (0 <= top < bottom <= grid.height and 0 <= left < right <= grid.width):
        raise BadRequest(
            f"box {foreign(asked)}",
            field=axis,
            expected="(top, left, bottom, right) in patches, the last two exclusive, within "
            f"(0, 0, {grid.height}, {grid.width})",
        )
    weights = np.zeros((grid.height, grid.width))
    weights[top:bottom, left:right] = 1
    return weights


def _mask_weights(values: np.ndarray, grid: TokenGrid, axis: str) -> np.ndarray:
    height, width = values.shape
    if height % grid.height or width % grid.width or not values.size:
        raise BadRequest(
            f"a mask of {height} x {width}",
            field=axis,
            expected=f"{grid.height} x {grid.width} patches, or a multiple of both",
        )
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError):
        raise BadRequest("a mask that is no numbers", field=axis) from None
    shape = (grid.height, height // grid.height, grid.width, width // grid.width)
    weights = values.reshape(shape).mean(axis=(1, 3))
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise BadRequest(
            "a mask that is empty, negative or not finite",
            field=axis,
            expected="a positive number on at least one patch",
        )
    return weights
