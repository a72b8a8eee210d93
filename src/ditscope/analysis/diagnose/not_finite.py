"""Rule: numbers that are not finite."""

from __future__ import annotations

import math

import numpy

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.diagnose.measured import step_range
from ditscope.analysis.recorded import branch_steps, metric_names
from ditscope.core.axes import BRANCHES
from ditscope.core.sites import Site
from ditscope.core.statistics import STATISTICS
from ditscope.runs.reader import Run

THRESHOLD = Threshold("at least", 1, "number", "a softmax of finite scores is finite")


def check(run: Run) -> list[Finding]:
    """One finding per layer and branch that has NaN or Inf where a number was measured."""
    names, found = metric_names(run), []
    for branch in BRANCHES:
        if branch not in run.stats["branch"].values.tolist():
            continue
        steps = numpy.array(branch_steps(run, branch))
        here = run.stats[names].sel(branch=branch, step=steps)
        for site in run.manifest.sites:
            values = here.isel(layer=site.index, head=slice(0, site.heads)).to_dataarray()
            values = values.transpose("variable", "step", "head", ...)
            gaps = numpy.array([_may_be_nan(name, site) for name in names])
            allowed = gaps.reshape(-1, *[1] * (values.ndim - 1)) & numpy.isnan(values.values)
            bad = numpy.moveaxis(~numpy.isfinite(values.values) & ~allowed, 0, -1)
            if not bad.any():
                continue
            heads = numpy.nonzero(bad.any(tuple(i for i in range(bad.ndim) if i != 1)))[0]
            where = numpy.asarray(bad.any(tuple(range(1, bad.ndim))))
            found.append(
                Finding(
                    rule=RULE.name,
                    severity="error",
                    message=f"{bad.sum()} of {bad.size} statistics are NaN or infinite",
                    measured=float(bad.sum()),
                    threshold=THRESHOLD,
                    advice="Scores overflow or the weights are damaged. Draw it in float32; if it "
                    "stays, look at the weights.",
                    command=sample_again(run, "--dtype", "float32"),
                    evidence=draw(run, "heads"),
                    layer=site.index,
                    heads=tuple(heads.tolist()),
                    steps=step_range(steps, where),
                    branch=branch,
                )
            )
    return found


def _may_be_nan(name: str, site: Site) -> bool:
    """Whether NaN can be the right answer: no step before, no such tokens, no grid."""
    known = STATISTICS.get(name)
    return known is None or known.gaps or math.isnan(known.maximum(site))


RULE = Rule(
    "not-finite",
    "Are all numbers finite?",
    "statistics that are NaN or infinite",
    THRESHOLD,
    check,
)
