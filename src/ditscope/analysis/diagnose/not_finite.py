"""Rule: numbers that are not finite."""

from __future__ import annotations

import numpy

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.diagnose.measured import step_range
from ditscope.analysis.recorded import branch_steps, metric_names
from ditscope.core.axes import BRANCHES
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
            defined = [n for n in names if n != "rms_distance" or site.grid is not None]
            values = here[defined].isel(layer=site.index, head=slice(0, site.heads)).to_dataarray()
            bad = ~numpy.isfinite(values.transpose("step", "head", ...).values)
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


RULE = Rule(
    "not-finite",
    "Are all numbers finite?",
    "statistics that are NaN or infinite",
    THRESHOLD,
    check,
)
