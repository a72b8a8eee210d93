"""Rule: both branches of guidance attend alike, so the class is not looked at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import xarray

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Array, Rule, Suspect, held
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.recorded import branch_steps
from ditscope.errors import BadRequest

LASTING = 0.2
"""Share of the steps."""


class Branches(Rule):
    """Both branches of guidance have the same attention for a fifth of the steps."""

    name = "branches"
    question = "Does the class change what is attended to?"
    measurement = (
        "difference between the branches as a share of their size, at a step, mean over the "
        "statistics of all heads"
    )
    threshold = Threshold(
        "at most",
        1e-4,
        "of their size",
        "absolute: branches that are told different classes differ by percents, equal ones by "
        "rounding",
    )
    side, unit, margin = "at most", "of their size", 1.5

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of the whole run."""
        found = held(_apart(seen), threshold, LASTING)
        if found:
            yield Suspect(
                message="attention is the same whether the model is told the class or not: it "
                "ignores the class, or is given the wrong one, and guidance does nothing",
                advice="Check the class embedding and the null label in the weights; draw another "
                "class with the same seed: the picture should change.",
                measured=found.measured,
                steps=found.steps,
                branch=None,
                curve=found.curve,
                picture=("heads", "--branch", "uncond"),
            )

    def worst(self, seen: Seen) -> Array:
        """The step at which the branches are nearest, but for a fifth of the steps."""
        return numpy.quantile(_apart(seen).transpose("step", "sample").values, LASTING, axis=0)


def _apart(seen: Seen) -> xarray.DataArray:
    """Difference of the branches (step, sample); NaN-free, empty where nothing is known."""
    steps = numpy.array(branch_steps(seen.run, "uncond"))
    steps = steps[numpy.isin(steps, branch_steps(seen.run, "cond"))]
    cond, uncond = (seen.statistics(branch).sel(step=steps) for branch in ("cond", "uncond"))
    manifest = seen.run.manifest
    null = manifest.guidance.null_label
    told = numpy.array([manifest.labels[i].index != null for i in cond["sample"].values.tolist()])
    if not told.any():
        raise BadRequest("the network was told no class, so both branches are one", field="label")
    cond, uncond = cond.isel(sample=told), uncond.isel(sample=told)
    size = numpy.maximum(numpy.maximum(abs(cond), abs(uncond)), 1e-12)
    # NaN is another rule's matter, and undefined metrics are nobody's.
    return (abs(cond - uncond) / size).mean(["metric", "layer", "head"], skipna=True)
