"""Rule: both branches of guidance attend alike, so the class is not looked at."""

from __future__ import annotations

import numpy

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.diagnose.measured import step_range
from ditscope.analysis.recorded import branch_steps, recorded
from ditscope.runs.reader import Run

THRESHOLD = Threshold(
    "at most",
    1e-4,
    "relative difference",
    "absolute: branches that are told different classes differ by percents, equal ones by rounding",
)
LASTING = 0.5
"""Share of the steps."""


def check(run: Run) -> list[Finding]:
    """A finding if no statistic of any head tells the branches apart at half of the steps."""
    steps = numpy.array(branch_steps(run, "uncond"))
    steps = steps[numpy.isin(steps, branch_steps(run, "cond"))]
    cond, uncond = (recorded(run, branch=b).sel(step=steps) for b in ("cond", "uncond"))  # type: ignore[arg-type]
    size = numpy.maximum(numpy.maximum(abs(cond), abs(uncond)), 1e-12)
    apart = (abs(cond - uncond) / size).transpose("step", ...).values.reshape(len(steps), -1)
    apart = apart[:, ~numpy.isnan(apart).all(0)]
    if not apart.size or numpy.isnan(apart).any():  # another rule's
        return []
    largest = apart.max(1)
    holds = largest <= THRESHOLD.value
    if holds.mean() < LASTING:
        return []
    return [
        Finding(
            rule=RULE.name,
            severity="error",
            message="attention is the same whether the model is told the class or not: it ignores "
            "the class, or is given the wrong one, and guidance does nothing",
            measured=float(largest[holds].max()),
            threshold=THRESHOLD,
            advice="Check the class embedding and the null label in the weights; draw another "
            "class with the same seed: the picture should change.",
            command=sample_again(run),
            evidence=draw(run, "heads", "--branch", "uncond"),
            steps=step_range(steps, holds),
        )
    ]


RULE = Rule(
    "branches",
    "Does the class change what is attended to?",
    "largest relative difference between the branches in any statistic of any head, at a step",
    THRESHOLD,
    check,
)
