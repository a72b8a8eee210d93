"""Rule: heads of one layer that do the same."""

from __future__ import annotations

from itertools import combinations

import numpy

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.head_kinds import EVEN
from ditscope.analysis.recorded import METRIC, recorded, relative_to_even
from ditscope.runs.reader import Run

THRESHOLD = Threshold(
    "at most",
    1e-5,
    "relative difference",
    "absolute: equal heads differ by rounding in float32; by chance, heads do not agree in every "
    "statistic of every step and sample",
)
LEAST_NUMBERS = 3
"""Fewer numbers may agree by chance."""


def check(run: Run) -> list[Finding]:
    """One finding per pair of heads of a layer with the same statistics everywhere."""
    values = recorded(run)
    relative = relative_to_even(run, values)
    found = []
    for site in run.manifest.sites:
        here = values.sel(layer=site.index).isel(head=slice(0, site.heads))
        data = here.transpose("head", ...).values.reshape(site.heads, -1)
        data = data[:, numpy.isfinite(data).all(0)]
        dead = numpy.zeros(site.heads, bool)
        if "entropy" in values[METRIC].values.tolist():
            ratio = relative.sel({METRIC: "entropy", "layer": site.index})
            dead = (ratio.min(["step", "sample"]) >= EVEN).values  # another rule's
        if data.shape[1] < LEAST_NUMBERS:
            continue
        for one, other in combinations(range(site.heads), 2):
            apart = numpy.abs(data[one] - data[other]) / numpy.maximum(
                numpy.maximum(numpy.abs(data[one]), numpy.abs(data[other])), 1e-12
            )
            if apart.max() <= THRESHOLD.value and not (dead[one] or dead[other]):
                found.append(_finding(run, site.index, (one, other), float(apart.max())))
    return found


def _finding(run: Run, layer: int, heads: tuple[int, int], measured: float) -> Finding:
    return Finding(
        rule=RULE.name,
        severity="error",
        message="two heads have the same statistics at every step: one is a copy of the other",
        measured=measured,
        threshold=THRESHOLD,
        advice="Compare the weights of the two heads: a conversion may have repeated one. If they "
        "are equal, one can be removed.",
        command=sample_again(run, "--qk-steps", "5"),
        evidence=draw(run, "heads"),
        layer=layer,
        heads=heads,
        branch="cond",
    )


RULE = Rule(
    "redundant-heads",
    "Do the heads of a layer differ?",
    "largest relative difference of any statistic between two heads, over all steps and samples",
    THRESHOLD,
    check,
)
