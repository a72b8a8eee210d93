"""What kind of head each one is, by rules on what was measured.

A head may be of several kinds; the one it is called by is the first in the order below, from the
most to the least specific. Statistics tell some kinds; others need maps, so stored Q and K, and one
needs both branches. A kind that a run cannot tell says which option would record what is missing.

A head whose output is zero cannot be told here: a run stores what a head looks at, not its values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import xarray

from ditscope.analysis.map_measures import map_measures
from ditscope.analysis.recorded import (
    METRIC,
    RECORD_BRANCHES,
    RECORD_MAPS,
    RECORD_STATISTICS,
    recorded,
    relative_to_even,
)
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest
from ditscope.runs.reader import Run

OTHER = "mixed"
"""The kind of a head that no rule fits."""

EVEN = 0.999
"""Entropy of a dead head, as a share of log N: rounding in bfloat16 stays above it."""
SINK_SHARE, SINK_EVEN = 0.3, 3
"""Share of all attention that makes a key a sink (Gu et al. 2024, arXiv:2410.10781), and how many
even shares that must be: on a few patches even attention is no sink."""
DIFFUSE = 0.95
MOST = 0.5
"""Of a row's attention: more than goes anywhere else."""
LINE_LIFT = 0.4
"""How far along from even attention (0) to all in one line (1)."""
NEAR_REACH, FAR_REACH = 0.5, 0.75
"""Distance, in units of even attention's, of heads that look near and far."""
GAIN = 0.1
SAME = 0.99

Measured = xarray.Dataset


@dataclass(frozen=True)
class Kind:
    """A kind of head: its rule in words, and as a function of what was measured."""

    name: str
    rule: str
    needs: tuple[str, ...]  # measured quantities (variables of `head_kinds`)
    holds: Callable[[Measured], xarray.DataArray]


KINDS = (
    Kind(
        "dead",
        f"entropy at least {EVEN} log N at every step and sample: even, whatever it is given",
        ("least_entropy",),
        lambda m: m["least_entropy"] >= EVEN,
    ),
    Kind(
        "sink",
        f"one key receives at least {SINK_SHARE:.0%} of all attention, and {SINK_EVEN} even shares",
        ("received_share", "received_even"),
        lambda m: (m["received_share"] >= SINK_SHARE) & (m["received_even"] >= SINK_EVEN),
    ),
    Kind(
        "diffuse",
        f"entropy at least {DIFFUSE} log N",
        ("entropy",),
        lambda m: m["entropy"] >= DIFFUSE,
    ),
    Kind(
        "diagonal",
        f"at least {MOST:.0%} goes to the patch at one displacement, other than none",
        ("offset", "offset_y", "offset_x"),
        lambda m: (m["offset"] >= MOST) & ((m["offset_y"] != 0) | (m["offset_x"] != 0)),
    ),
    Kind(
        "row",
        f"stays in its grid row: {LINE_LIFT:.0%} of the way from even to all of it, and twice the "
        "share of its column",
        ("row", "column", "row_lift"),
        lambda m: (m["row_lift"] >= LINE_LIFT) & (m["row"] >= 2 * m["column"]),
    ),
    Kind(
        "column",
        f"stays in its grid column: {LINE_LIFT:.0%} of the way from even to all of it, and twice "
        "the share of its row",
        ("row", "column", "column_lift"),
        lambda m: (m["column_lift"] >= LINE_LIFT) & (m["column"] >= 2 * m["row"]),
    ),
    Kind(
        "local",
        f"root mean square distance at most {NEAR_REACH} of even attention's",
        ("reach",),
        lambda m: m["reach"] <= NEAR_REACH,
    ),
    Kind(
        "semantic",
        f"follows the object: {GAIN:.0%} more attention than its position explains stays within "
        "the object, or outside of it",
        ("gain",),
        lambda m: m["gain"] >= GAIN,
    ),
    Kind(
        "branch-insensitive",
        f"both branches have {SAME:.0%} of their attention in common: the class is not looked at",
        ("branch_overlap",),
        lambda m: m["branch_overlap"] >= SAME,
    ),
    Kind(
        "global",
        f"root mean square distance at least {FAR_REACH} of even attention's",
        ("reach",),
        lambda m: m["reach"] >= FAR_REACH,
    ),
)
FROM_STATISTICS = {
    "least_entropy": "entropy",
    "entropy": "entropy",
    "received_share": "received_max",
    "received_even": "received_max",
    "reach": "rms_distance",
}
"""Quantities of the rules, and the statistics that they come from; the others come from maps."""


def head_kinds(run: Run, *, branch: Branch = "cond") -> xarray.Dataset:
    """The kind of every head, mean over steps and samples.

    Returns:
        `called` (layer, head): the kind it goes by, "" where there is no such head. `holds` (kind,
        layer, head): 1, 0, or NaN where the run cannot tell; coordinates `rule` and `missing` say
        in words what the rule is, and what to record if the run cannot tell for any head. The
        measured quantities (layer, head): entropy, reach and `received_even` in units of even
        attention, the others as in `map_measures`.

    Raises:
        BadRequest: no statistics, or the branch is not in the run.
    """
    found = _from_statistics(run, branch).merge(_from_maps(run, branch))
    there = _there(run, found)
    holds, missing = numpy.full((len(KINDS), *there.shape), numpy.nan), []
    for i, kind in enumerate(KINDS):
        known = there.copy()
        for name in kind.needs:
            known = known & (found[name].notnull() if name in found else False)
        told = bool(known.any())
        if told:
            holds[i] = kind.holds(found).where(known)
        missing.append("" if told else _fix(run, kind))
    found["holds"] = (("kind", "layer", "head"), holds)
    found = found.assign_coords(
        kind_name=("kind", [kind.name for kind in KINDS]),
        rule=("kind", [kind.rule for kind in KINDS]),
        missing=("kind", missing),
    ).set_index(kind="kind_name")
    return found.assign(called=_called(found["holds"], there))


def _called(holds: xarray.DataArray, there: xarray.DataArray) -> xarray.DataArray:
    """The first kind that holds, by name (layer, head)."""
    names = numpy.array([*(kind.name for kind in KINDS), OTHER], dtype=object)
    yes = (holds == 1).values
    first = numpy.where(yes.any(0), yes.argmax(0), len(KINDS))
    return there.copy(data=numpy.where(there.values, names[first], ""))


def _from_statistics(run: Run, branch: Branch) -> xarray.Dataset:
    """Quantities that need statistics alone, (layer, head)."""
    values = recorded(run, branch=branch)
    relative = relative_to_even(run, values)
    over = ["step", "sample"]
    found = {}
    for name, metric in FROM_STATISTICS.items():
        if metric in values[METRIC].values.tolist():
            plain = values.sel({METRIC: metric}, drop=True)
            ratio = relative.sel({METRIC: metric}, drop=True)
            if name == "least_entropy":
                found[name] = ratio.min(over, skipna=False)
            else:
                found[name] = (plain if name == "received_share" else ratio).mean(over)
    return xarray.Dataset(found).drop_vars("unit", errors="ignore")


def _from_maps(run: Run, branch: Branch) -> xarray.Dataset:
    """Quantities that need stored maps; empty if there are none."""
    try:
        measured = map_measures(run)
    except BadRequest:
        return xarray.Dataset()
    found = measured.drop_vars(["offset_y", "offset_x"]).sel(branch=branch).mean(["step", "sample"])
    # A mean of two displacements is neither: the most frequent one is meant.
    for name in ("offset_y", "offset_x"):
        found[name] = measured[name].sel(branch=branch).median(["step", "sample"])
    grids = [run.manifest.sites[layer].grid for layer in found["layer"].values.tolist()]
    for name, size in (("row", "width"), ("column", "height")):
        along = [numpy.nan if g is None else _even_line(getattr(g, size), g.count) for g in grids]
        even = xarray.DataArray(along, dims="layer")
        found[f"{name}_lift"] = (found[name] - even) / (1 - even)
    return found.drop_vars("branch").assign_attrs({})


def _even_line(length: int, count: int) -> float:
    """Share of even attention to others that stays in a line; NaN if there is nothing else."""
    return (length - 1) / (count - 1) if length < count else numpy.nan


def _there(run: Run, found: xarray.Dataset) -> xarray.DataArray:
    """Which heads exist, (layer, head)."""
    heads = numpy.array([site.heads for site in run.manifest.sites])
    exists = numpy.arange(found.sizes["head"]) < heads[:, None]
    return xarray.DataArray(exists, {n: found[n] for n in ("layer", "head")}, ("layer", "head"))


def _fix(run: Run, kind: Kind) -> str:
    """What to record so that this kind can be told."""
    if set(kind.needs) <= FROM_STATISTICS.keys():
        return RECORD_STATISTICS
    branches = {name for record in run.steps for name in record.branches}
    if "branch_overlap" in kind.needs and len(branches) < 2:
        return f"{RECORD_BRANCHES} --qk-steps 5"
    if not run.manifest.qk_steps:
        return RECORD_MAPS
    return "this model has no known patch grid, or the picture no object"
