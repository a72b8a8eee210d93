"""The metrics of attention: what each number means, its unit and its exact bounds.

Making and reading share this table, so that a stored number cannot change its meaning on the way.
For query i and key j, `p_ij` is the attention; `x_i` is the place of a patch on its grid, `N` and
`M` count queries and keys. What has a place is about image queries and image keys alone, and
renormalised to them; a query that a mask hides every key from is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

from ditscope.core.sites import Site

Bound = Callable[[Site], float]

METRIC_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def _zero(site: Site) -> float:
    return 0.0


@dataclass(frozen=True)
class Statistic:
    """One number per (step, branch, sample, layer, head), from `minimum` to `maximum` of a site."""

    name: str
    long_name: str
    unit: str  # "nats", "patches", "1", ...
    formula: str
    source: str
    maximum: Bound  # NaN where the metric is undefined
    minimum: Bound = _zero
    axis: Literal["query", "key"] | None = "query"  # of its numbers of single tokens, if any
    gaps: bool = False  # may be undefined where it is evaluated, and is NaN there


def _diagonal(site: Site) -> float:
    return site.grid.diagonal if site.grid else math.nan


def _on_grid(bound: Bound) -> Bound:
    return lambda site: bound(site) if site.grid else math.nan


def _constant(value: float) -> Bound:
    return lambda site: value


def _keys(site: Site) -> float:
    return float(site.keys)


_SHARE = _constant(1.0)

TOP_KEYS = (4, 16, 64)
RADII = (1, 2, 4)
"""In patches. Of these two kinds of metric any other number can be asked for as well."""

SINK = 10.0
"""Even shares, from which a key is a sink."""

SEGMENTS = ("image", "text", "class", "register")


def top_mass(k: int) -> Statistic:
    """Of the k largest weights of a query."""
    return Statistic(
        name=f"top_mass_{k}",
        long_name=f"sum of the {k} largest weights of a query, mean over queries",
        unit="1",
        formula=f"mean_i sum of the {k} largest p_ij",
        source="after Zhang et al. 2023, arXiv:2306.14048",
        maximum=_SHARE,
    )


def mass_within(radius: int) -> Statistic:
    """Of the patches at most `radius` patches away."""
    return Statistic(
        name=f"mass_within_{radius}",
        long_name=f"attention at most {radius} patches away, mean over queries",
        unit="1",
        formula=f"mean_i sum_j p_ij [|x_i - x_j| <= {radius}]",
        source="Yuan et al. 2024, arXiv:2406.08552",
        maximum=_on_grid(_SHARE),
    )


def _segment_mass(kind: str) -> Statistic:
    def maximum(site: Site) -> float:
        kinds = {segment.kind for segment in site.segments} | ({"image"} if site.grid else set())
        return 1.0 if kind in kinds else math.nan

    return Statistic(
        name=f"mass_{kind}",
        long_name=f"attention on {kind} tokens, mean over queries",
        unit="1",
        formula=f"mean_i sum of p_ij over {kind} tokens j",
        source="sum of the map",
        maximum=maximum,
    )


def _frequency(band: Literal["low", "high"]) -> Statistic:
    sign = {"low": "0 < |f| <=", "high": "|f| >"}[band]
    return Statistic(
        name=f"{band}_frequency",
        long_name=f"share of the mean map's power at {band} spatial frequencies",
        unit="1",
        formula=f"sum of |F(f)|^2 over {sign} 1/4 cycle per patch / sum over all f, "
        "F the discrete Fourier transform of mean_i p_ij on the grid",
        source="after Park and Kim 2022, arXiv:2202.06709",
        maximum=_on_grid(_SHARE),
        axis=None,
        gaps=True,  # no query looks at the image
    )


_LIKENESS: dict[str, tuple[str, str, str, str, float]] = {
    "overlap": (
        "overlap with",
        "1",
        "mean_i sum_j min(p_ij, p'_ij)",
        "1 - total variation distance; after Yuan et al. 2024, arXiv:2406.08552",
        1.0,
    ),
    "bhattacharyya": (
        "Bhattacharyya coefficient with",
        "1",
        "mean_i sum_j sqrt(p_ij p'_ij)",
        "Bhattacharyya 1943",
        1.0,
    ),
    "kl": (
        "Kullback-Leibler divergence from",
        "nats",
        "mean_i sum_j p_ij log(p_ij / p'_ij)",
        "Kullback and Leibler 1951, doi:10.1214/aoms/1177729694",
        math.inf,
    ),
}


def _likeness(between: str, name: str) -> Statistic:
    words, unit, formula, source, maximum = _LIKENESS[name]
    other = {"step": "the step before", "branch": "the other branch"}[between]
    return Statistic(
        name=f"{between}_{name}",
        long_name=f"{words} the map of {other}",
        unit=unit,
        formula=f"{formula}, p' of {other}",
        source=source,
        maximum=_constant(maximum),
        axis=None,
        gaps=True,  # the first step; one branch alone
    )


STATISTICS = {
    statistic.name: statistic
    for statistic in (
        Statistic(
            name="entropy",
            long_name="attention entropy, mean over queries",
            unit="nats",
            formula="mean_i -sum_j p_ij log p_ij",
            source="Clark et al. 2019, arXiv:1906.04341",
            maximum=lambda site: math.log(site.keys),
        ),
        Statistic(
            name="entropy_share",
            long_name="attention entropy as a share of that of even attention",
            unit="1",
            formula="mean_i -sum_j p_ij log p_ij / log M",
            source="after Clark et al. 2019, arXiv:1906.04341",
            maximum=lambda site: 1.0 if site.keys > 1 else math.nan,
        ),
        Statistic(
            name="effective_keys",
            long_name="effective number of keys, perplexity of the attention",
            unit="keys",
            formula="exp(mean_i -sum_j p_ij log p_ij)",
            source="Hill 1973, doi:10.2307/1934352, of order 1",
            maximum=_keys,
        ),
        Statistic(
            name="participation",
            long_name="participation ratio, mean over queries",
            unit="keys",
            formula="mean_i 1 / sum_j p_ij^2",
            source="Hill 1973, doi:10.2307/1934352, of order 2",
            maximum=_keys,
        ),
        Statistic(
            name="largest_probability",
            long_name="largest weight of a query, mean over queries",
            unit="1",
            formula="mean_i max_j p_ij",
            source="Voita et al. 2019, arXiv:1905.09418",
            maximum=_SHARE,
        ),
        *(top_mass(k) for k in TOP_KEYS),
        Statistic(
            name="rms_distance",
            long_name="attention distance, root mean square over queries and keys",
            unit="patches",
            formula="sqrt(mean_i sum_j p_ij |x_i - x_j|^2)",
            source="after Dosovitskiy et al. 2021, arXiv:2010.11929",
            maximum=_diagonal,
        ),
        Statistic(
            name="mean_distance",
            long_name="mean attention distance",
            unit="patches",
            formula="mean_i sum_j p_ij |x_i - x_j|",
            source="Dosovitskiy et al. 2021, arXiv:2010.11929",
            maximum=_diagonal,
        ),
        Statistic(
            name="centroid_offset",
            long_name="distance from a query to the centre of its attention, mean over queries",
            unit="patches",
            formula="mean_i |sum_j p_ij x_j - x_i|",
            source="first moment of the map",
            maximum=_diagonal,
        ),
        Statistic(
            name="anisotropy",
            long_name="how elongated the attention is around its centre, on rows and columns",
            unit="1",
            formula="(a - b) / (a + b) of the eigenvalues a >= b of the mean covariance of x_j",
            source="second moments of the map",
            maximum=_on_grid(_SHARE),
            gaps=True,  # each query looks at one place
        ),
        *(mass_within(radius) for radius in RADII),
        Statistic(
            name="received_max",
            long_name="largest mean attention that one key receives",
            unit="1",
            formula="max_j mean_i p_ij",
            source="Xiao et al. 2024, arXiv:2309.17453",
            maximum=_SHARE,
            axis="key",
        ),
        Statistic(
            name="sink_tokens",
            long_name=f"keys that receive over {SINK:g} even shares",
            unit="keys",
            formula=f"number of j with mean_i p_ij > {SINK:g} / M",
            source="after Xiao et al. 2024, arXiv:2309.17453",
            maximum=lambda site: site.keys / SINK,
            axis="key",
        ),
        Statistic(
            name="sink_mass",
            long_name=f"attention on keys that receive over {SINK:g} even shares",
            unit="1",
            formula=f"sum of mean_i p_ij over j where it is > {SINK:g} / M",
            source="after Xiao et al. 2024, arXiv:2309.17453",
            maximum=_SHARE,
            axis="key",
        ),
        *(_segment_mass(kind) for kind in SEGMENTS),
        *(_frequency(band) for band in ("low", "high")),
        Statistic(
            name="output_norm",
            long_name="size of what a head puts out, root mean square over queries",
            unit="1",
            formula="sqrt(mean_i |sum_j p_ij v_j|^2)",
            source="after Kobayashi et al. 2020, arXiv:2004.10102",
            maximum=_constant(math.inf),
            axis=None,
        ),
        Statistic(
            name="head_similarity",
            long_name="likeness to the other heads of the layer, Bhattacharyya coefficient",
            unit="1",
            formula="mean over heads g != h and queries i of sum_j sqrt(p^h_ij p^g_ij)",
            source="Bhattacharyya 1943; after Clark et al. 2019, arXiv:1906.04341",
            maximum=lambda site: 1.0 if site.heads > 1 else math.nan,
        ),
        *(_likeness(*each) for each in product(("step", "branch"), _LIKENESS)),
    )
}
"""Every metric that is known, by name. `ditscope.metric` adds to it."""

DEFAULT_METRICS = ("entropy", "rms_distance", "received_max")
"""What is measured if nothing else is asked for: the price of one or two attention calls."""
