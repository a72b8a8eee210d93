"""What a metric is to the making side: what it reduces, and by which small function.

    @metric("first_token", long_name="attention on the first token", needs="columns")
    def first_token(scope):
        columns = torch.zeros(scope.keys)
        columns[0] = 1
        return columns

Whatever is registered can be asked for by name, in `watch`, in `sample` and on the command line.

Shapes: T rows times heads, t some of them, N queries, n some of them, M keys, I image tokens,
C numbers of one token.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditscope.attention.metrics.scope import Scope
from ditscope.core.statistics import METRIC_NAME, STATISTICS, Bound, Statistic
from ditscope.errors import BadRequest, foreign, listed

QUERIES, IMAGE, COLUMNS, RECEIVED = "queries", "image", "columns", "received"
STEPS, BRANCHES = "steps", "branches"
OUTPUT = "output"
NEEDS = {
    QUERIES: "tiles of the map",
    IMAGE: "tiles of the map among image tokens",
    COLUMNS: "expected values of columns",
    RECEIVED: "what each key receives",
    STEPS: "tiles of the map and of that of the step before",
    BRANCHES: "tiles of the map and of that of the other branch",
    OUTPUT: "what the call returned",
}
"""What a metric may need; else it needs another metric, by name."""

Reduce = Callable[..., "Tensor | None"]
Finish = Callable[[Tensor, Scope], Tensor]


@dataclass(frozen=True)
class Metric:
    """How a number is made. `needs` says what `reduce` is given and has to return.

    ========== ================= ============================================================
    needs      given             returns
    ========== ================= ============================================================
    queries    `Tile` over keys  (t, n) or (t, n, C), averaged over the queries that see a key
    image      `Tile` over the   as above, averaged over image queries that see an image key;
               image keys        without a grid it is not called, and the metric is NaN
    columns    `Scope`           (M,) or (M, C), of which each query's expectation under its
                                 attention is averaged; None where it is undefined
    received   (T, M), `Scope`   (T, M) or (T, I); `finish` makes one number of them
    steps      log p and log p'  (t, n), averaged over queries that see a key in both maps;
               (t, n, M), p' of  NaN at the first step. Only of a recorded sampling
               the step before
    branches   as above, p' of   (t, n), as above; NaN where one branch alone was evaluated
               the other branch
    output     (B, H, N, V), as  (B, H), from the output alone, of width V; no pass is made for it
               the call gave it
    a metric   (T,) or (T, N),   the same shape
               `Scope`
    ========== ================= ============================================================

    `finish` turns the average (T,) or (T, C) into (T,), and in `detail="tokens"` the numbers of
    each token, (T, N) or (T, N, C), into (T, N). `total`, if given, is the sum of `reduce` over the
    queries of a tile, (t,), at less cost; where nothing is masked, if the metric needs `image`.
    """

    name: str
    needs: str
    reduce: Reduce
    finish: Finish | None = None
    total: Callable[[Any], Tensor] | None = None
    fused: bool = False  # tells that `queries` or `image` can be had from fused calls too
    one_pass: bool = False  # likewise, from a kernel that makes one pass over scores
    all_heads: bool = False  # a tile must hold every head of a row
    scattered: bool = True  # `reduce` takes a tile whose queries are indices and not a slice

    @property
    def statistic(self) -> Statistic:
        """What the number means."""
        return STATISTICS[self.name]

    def finished(self, value: Tensor, scope: Scope) -> Tensor:
        """What was averaged, (T,) or (T, C), or found of tokens, as one number each."""
        if self.finish:
            return self.finish(value, scope)
        return value

    def of_output(self, output: Tensor) -> Tensor:
        """Of a metric that needs the output (B, H, N, V): (B, H) float32."""
        found = self.reduce(output)
        if found is None or found.shape != output.shape[:2]:
            shape = None if found is None else tuple(found.shape)
            raise BadRequest(
                f"returned shape {shape}",
                field=f"metric {self.name}",
                expected=f"one number for each row and head, {tuple(output.shape[:2])}",
            )
        return found.float()

    def value_columns(self, scope: Scope) -> Tensor | None:
        """Of a metric that needs columns: (M, C) float32 on the device of the call."""
        columns = self.reduce(scope)
        if columns is None:
            return None
        if columns.dim() not in (1, 2) or len(columns) != scope.keys:
            raise BadRequest(
                f"returned shape {tuple(columns.shape)}",
                field=f"metric {self.name}",
                expected=f"a value for each of the {scope.keys} keys, or None",
            )
        return columns.view(scope.keys, -1).to(scope.device, torch.float32)


_METRICS: dict[str, Metric] = {}
_FAMILIES: dict[str, tuple[Callable[[int], Statistic], Callable[[str, int], Metric]]] = {}
_OF_A_FAMILY = re.compile(r"([a-z_]+)_([1-9][0-9]{0,4})")


def reduces(name: str, needs: str, **options: Any) -> Callable[[Reduce], Reduce]:
    """Register how a metric of `ditscope.core.statistics` is made; options as of `Metric`."""

    def register(reduce: Reduce) -> Reduce:
        assert name in STATISTICS, f"{name} is not described"
        assert needs in NEEDS or needs in _METRICS, f"{name} needs {needs}"
        _METRICS[name] = Metric(name, needs, reduce, **options)
        return reduce

    return register


def family(
    prefix: str, describe: Callable[[int], Statistic], make: Callable[[str, int], Metric]
) -> None:
    """Register the metrics `prefix_1`, `prefix_2`, ...: each is made when it is first asked for.

    `describe` says what the number means, `make` is given the name and the number.
    """
    _FAMILIES[prefix] = describe, make


def _known(name: object) -> bool:
    """Whether there is such a metric; one of a family is registered now."""
    if name in _METRICS:
        return True
    match = _OF_A_FAMILY.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[1] not in _FAMILIES:
        return False
    describe, make = _FAMILIES[match[1]]
    STATISTICS[match[0]] = describe(int(match[2]))
    _METRICS[match[0]] = make(match[0], int(match[2]))
    return True


def metric(
    name: str,
    *,
    needs: str,
    long_name: str | None = None,
    unit: str = "1",
    formula: str = "",
    source: str = "",
    bounds: tuple[float | Bound, float | Bound] = (-math.inf, math.inf),
    finish: Finish | None = None,
) -> Callable[[Reduce], Reduce]:
    """Register a metric of your own; from then on it can be asked for by its name.

    Args:
        name: Small letters, digits and _.
        needs: What the function is given: "queries", "image", "columns", "received", "steps",
            "branches", "output", or the name of a metric that it follows from. `Metric` says what
            it returns.
        long_name: What the number is, in words. [default: the name]
        unit: "nats", "patches", "1" for a share or a count, ...
        formula: How it is defined.
        source: Where it is from.
        bounds: Smallest and largest value, numbers or functions of a `Site`.
        finish: Makes one number of what was averaged; see `Metric`.

    Raises:
        BadRequest: the name is taken or not a name, or nothing can be needed under `needs`.
    """
    if not METRIC_NAME.fullmatch(name):
        raise BadRequest(
            f"{foreign(repr(name))} is no name of a metric",
            field="name",
            expected="a small letter, then small letters, digits and _, 64 at most",
        )
    if name in STATISTICS or _known(name):
        raise BadRequest(f"there is a metric {name!r} already", field="name")
    if needs not in NEEDS and not _known(needs):
        raise BadRequest(
            f"found {foreign(repr(needs))}",
            field="needs",
            expected=f"one of {listed(NEEDS)}, or the name of a metric",
        )
    low, high = (
        bound if callable(bound) else (lambda site, value=float(bound): value) for bound in bounds
    )
    axis = {RECEIVED: "key", STEPS: None, BRANCHES: None, OUTPUT: None}.get(needs, "query")
    if needs in _METRICS:
        axis = STATISTICS[needs].axis

    def register(reduce: Reduce) -> Reduce:
        STATISTICS[name] = Statistic(
            name, long_name or name, unit, formula, source, high, low, axis, gaps=True
        )
        _METRICS[name] = Metric(name, needs, reduce, finish, scattered=False)
        return reduce

    return register


def known_metrics(names: Sequence[str], field: str = "metrics") -> tuple[str, ...]:
    """The names, if each is registered and none comes twice.

    Raises:
        BadRequest: naming the nearest names there are.
    """
    if isinstance(names, str):
        raise BadRequest(
            f"found {foreign(repr(names))}", field=field, expected="a list of names of metrics"
        )
    names = tuple(names)
    unknown = [name for name in names if not _known(name)]
    if unknown:
        known = [name for name in STATISTICS if _known(name)]
        near = difflib.get_close_matches(str(unknown[0]), known, n=3, cutoff=0.5)
        raise BadRequest(
            f"there is no metric {listed(unknown)}",
            field=field,
            expected=f"some of {', '.join(known)}; of those that end in a number any number",
            fix=f"did you mean {' or '.join(near)}?" if near else None,
        )
    if len(set(names)) < len(names):
        raise BadRequest("names one twice", field=field)
    return names


def find(name: str) -> Metric:
    """The metric of that name, which is known."""
    assert _known(name), f"there is no metric {name}"
    return _METRICS[name]
