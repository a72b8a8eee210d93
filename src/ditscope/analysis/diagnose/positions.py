"""Rule: heads that look near in healthy runs look anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import xarray

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Array, Rule, Suspect, held
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.recorded import METRIC, relative_to_even
from ditscope.errors import BadRequest

NEAR = 0.75
"""Distance of heads that look near, in units of even attention's, in healthy runs."""
LEAST_HEADS = 2
LASTING = 0.2
"""Share of the steps."""


class Positions(Rule):
    """Near heads have lost the way to their neighbours, for a fifth of the steps or more."""

    name = "positions"
    question = "Do heads that look near still do so?"
    measurement = (
        "how far near heads look, from what healthy pictures have (0) to even attention (1), "
        "median over these heads"
    )
    unit = "of the way to even attention"
    floor = 0.15

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of the whole run."""
        values, count = _lost(seen)
        found = held(values, threshold, LASTING)
        if found:
            yield Suspect(
                message=f"the {count} heads that look at their neighbours in healthy runs look "
                "anywhere: the network does not know where its patches are",
                advice="Check the position table: its order of rows and columns, its size, and "
                "whether patches are cut out in the order of training.",
                measured=found.measured,
                steps=found.steps,
                curve=found.curve,
                picture=("heads", "--metric", "rms_distance"),
            )

    def worst(self, seen: Seen) -> Array:
        """The step at which each picture is farthest off, but for a fifth of the steps."""
        values = _lost(seen)[0].transpose("step", "sample").values
        return numpy.quantile(values, 1 - LASTING, axis=0)


def _lost(seen: Seen) -> tuple[xarray.DataArray, int]:
    """How far the near heads are on the way to even (step, sample), and how many there are."""
    if seen.reference is None:
        raise BadRequest("there is no calibration", field="calibration", fix=seen.calibrate)
    own = seen.statistic("rms_distance", relative=True)
    mean, _ = seen.reference.expected(seen.statistics(), "cond")
    usual = relative_to_even(seen.run, mean.sel({METRIC: ["rms_distance"]}))
    usual = usual.isel({METRIC: 0}, drop=True).drop_vars("unit", errors="ignore")
    near = usual.mean("step") <= NEAR  # false for NaN
    count = int(near.sum())
    if count < LEAST_HEADS:
        raise BadRequest(
            f"healthy runs of this model have {count} heads that look near",
            field="calibration",
            expected=f"at least {LEAST_HEADS}",
        )
    lost = ((own - usual) / (1 - usual)).where(near)
    return lost.median(["layer", "head"], skipna=True), count
