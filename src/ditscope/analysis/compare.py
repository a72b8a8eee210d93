"""What differs between two runs: classes, seeds, steps, checkpoints, or models of different size.

Both are brought to shared coordinates (see `coordinates`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import xarray

from ditscope.analysis import testing
from ditscope.analysis.confidence import bounds
from ditscope.analysis.coordinates import (
    PLACE,
    Array,
    comparable,
    on_shared_coordinates,
    same_heads,
)
from ditscope.analysis.recorded import METRIC
from ditscope.core.axes import Branch
from ditscope.runs.reader import Run

SIGNIFICANT = 0.05
"""Adjusted p up to which a difference counts as found: of those that count, one in twenty is
expected to be none."""
FEW = 4
COLUMNS = 512
"""Numbers that are tested together: bounds memory."""


def compare(
    run_a: Run,
    run_b: Run,
    *,
    class_a: str | int | None = None,
    class_b: str | int | None = None,
    steps_a: Iterable[int] | None = None,
    steps_b: Iterable[int] | None = None,
    metrics: Sequence[str] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """Every difference between two runs, b less a, with how large and how sure it is.

    Where sample i of both runs has the same seed, pairs are compared: what they share of the noise
    does not count as chance.

    Args:
        run_a: the run that is compared with.
        run_b: the run that may differ; the same run for two of its classes.
        class_a: only samples of this class, by name or index; None: all.
        class_b: the same for `run_b`.
        steps_a: the mean over these steps in place of ranges of noise level; None: all steps.
        steps_b: the same for `run_b`; None: those of `steps_a`. With one run twice, two steps of
            the same samples are compared.
        metrics: names of statistics; None: those that both runs recorded and that have a value for
            even attention.
        branch: "cond" or "uncond".

    Returns:
        (metric, noise, layer, head): `mean_a`, `mean_b`, `difference` in units of even attention;
        `low`, `high`: 95 % bootstrap interval of the difference; `effect`: the difference in
        standard deviations (Hedges' g); `p` of a permutation test and `p_adjusted` for all tests at
        once (false discovery rate). Uncertainties are NaN where a run has one sample. `noise` is
        the middle of a range of noise levels, of named steps their mean level; `layer` the number,
        or the relative depth (0 to 1) with one `head`, the mean. `attrs["design"]` says "paired by
        seed" or "independent".

    Raises:
        BadRequest: no statistics, a class, step, metric or branch that is not in a run, or no range
            of noise levels that both have.
    """
    first = None if steps_a is None else list(steps_a)
    second = first if steps_b is None else list(steps_b)
    sides = on_shared_coordinates(
        comparable(run_a, class_a, metrics, branch, run_b, second if first is None else first),
        comparable(run_b, class_b, metrics, branch, run_a, second),
        same_heads=same_heads(run_a, run_b),
        named_steps=second is not None,
    )
    shape = sides.a.shape[1:]
    a, b = (side.values.reshape(side.sizes["sample"], -1) for side in (sides.a, sides.b))
    found = tested(a, b, paired=sides.paired)
    coords = {name: sides.a[name] for name in (*PLACE, "unit")}
    return xarray.Dataset(
        {name: (PLACE, values.reshape(shape)) for name, values in found.items()},
        coords=coords,
        attrs={
            "design": "paired by seed" if sides.paired else "independent",
            "layers": sides.layers,
            "samples": (len(a), len(b)),
            "branch": branch,
            "steps": "named" if second is not None else "by noise level",
        },
    )


def most_changed(comparison: xarray.Dataset, count: int = 10) -> xarray.Dataset:
    """The places that differ most, first those that are beyond chance: along `place`.

    Order: adjusted p at most 0.05 first, then by size of the effect. With fewer than four samples
    in a run the spread that an effect is measured in is mostly chance: then by the difference, as a
    multiple of the root mean square difference of its metric.
    """
    difference = comparison["difference"]
    typical = (difference**2).mean([axis for axis in PLACE if axis != METRIC]) ** 0.5
    few = min(comparison.attrs["samples"]) < FEW
    size = difference / typical.where(typical > 0) if few else comparison["effect"]
    ranked = comparison.assign(size=abs(size).fillna(0))
    flat = ranked.stack(place=PLACE, create_index=False).dropna("place", subset=["difference"])
    beyond = (flat["p_adjusted"] <= SIGNIFICANT).values
    order = numpy.lexsort((-flat["size"].values, ~beyond))
    return flat.isel(place=order[:count]).drop_vars("size")


def tested(a: Array, b: Array, *, paired: bool) -> dict[str, Array]:
    """Everything about the columns of (sample, column), all tests adjusted together.

    `mean_a`, `mean_b`, `difference` (b less a), `low`, `high`, `effect`, `p`, `p_adjusted`: see
    `compare`.
    """
    blocks = [
        _tested(a[:, first : first + COLUMNS], b[:, first : first + COLUMNS], paired)
        for first in range(0, a.shape[1], COLUMNS)
    ]
    found = {name: numpy.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return found | {"p_adjusted": testing.adjusted(found["p"])}


def _tested(a: Array, b: Array, paired: bool) -> dict[str, Array]:
    """Everything about the columns of (sample, column)."""
    found = {"mean_a": a.mean(0), "mean_b": b.mean(0), "difference": b.mean(0) - a.mean(0)}
    if paired:
        low, high = bounds(b - a)
        effect, p = testing.paired_g(b - a), testing.sign_flip_p(b - a)
    else:
        low, high = testing.difference_bounds(a, b)
        effect, p = testing.hedges_g(a, b), testing.permutation_p(a, b)
    return found | {"low": low, "high": high, "effect": effect, "p": p}
