"""Rule: a layer whose every patch looks at a single one."""

from __future__ import annotations

import numpy

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.diagnose.measured import mean_and_interval, statistic, step_range
from ditscope.runs.reader import Run

THRESHOLD = Threshold(
    "at most",
    1.2,
    "patches",
    "absolute: 1 is the least there can be; entropy collapse after Zhai et al. 2023, "
    "arXiv:2303.06296",
)
LASTING = 0.5
"""Share of the steps."""


def check(run: Run) -> list[Finding]:
    """One finding per layer whose heads all spread over hardly one patch at half of the steps."""
    entropy = statistic(run, "entropy", relative=False)
    steps, found = entropy["step"].values, []
    for site in run.manifest.sites:
        if site.keys < 2:
            continue
        values = entropy.sel(layer=site.index).isel(head=slice(0, site.heads))
        widest = numpy.exp(values.max("head", skipna=False).transpose("sample", "step").values)
        holds = widest.mean(0) <= THRESHOLD.value
        if holds.mean() < LASTING:
            continue
        found.append(
            Finding(
                rule=RULE.name,
                severity="error",
                message="every head looks at one patch: attention gathers nothing",
                threshold=THRESHOLD,
                advice="Scores are too large: a softmax scale or temperature other than that of "
                "training, or a training that has diverged. Try an earlier checkpoint.",
                command=sample_again(run, "--weights", "EARLIER"),
                evidence=draw(run, "steps", "--layer", str(site.index)),
                layer=site.index,
                steps=step_range(steps, holds),
                branch="cond",
                **mean_and_interval(widest[:, holds].mean(1)),  # type: ignore[arg-type]
            )
        )
    return found


RULE = Rule(
    "collapsed",
    "Does every layer gather from more than one patch?",
    "patches that the widest head of a layer spreads over, exp(entropy), at half of the steps",
    THRESHOLD,
    check,
)
