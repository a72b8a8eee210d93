"""Rule: a layer that repeats the attention of the step before."""

from __future__ import annotations

import numpy

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.diagnose.measured import step_range
from ditscope.analysis.head_kinds import EVEN
from ditscope.analysis.recorded import METRIC, recorded, relative_to_even
from ditscope.runs.reader import Run

THRESHOLD = Threshold(
    "at most",
    1e-6,
    "relative difference",
    "absolute: latents differ from step to step, and with them every number by more than rounding",
)


def check(run: Run) -> list[Finding]:
    """One finding per layer with steps at which every head repeats every statistic."""
    values, found = recorded(run), []
    relative = relative_to_even(run, values)
    steps = values["step"].values
    if len(steps) < 2:
        return []
    for site in run.manifest.sites:
        here = values.sel(layer=site.index).isel(head=slice(0, site.heads))
        if "entropy" in values[METRIC].values.tolist():
            ratio = relative.sel({METRIC: "entropy", "layer": site.index})
            alive = ratio.isel(head=slice(0, site.heads)).min(["step", "sample"]) < EVEN
            here = here.isel(head=alive.values)  # heads that never change are another rule's
        data = here.transpose("step", ...).values.reshape(len(steps), -1)
        data = data[:, numpy.isfinite(data).all(0)]
        if not data.size:
            continue
        size = numpy.maximum(numpy.abs(data[1:]), 1e-12)
        apart = (numpy.abs(numpy.diff(data, axis=0)) / size).max(1)
        holds = apart <= THRESHOLD.value
        if not holds.any():
            continue
        found.append(
            Finding(
                rule=RULE.name,
                severity="error",
                message=f"{holds.sum()} of {len(steps)} steps repeat the attention of the step "
                "before, in every head and sample",
                measured=float(apart[holds].max()),
                threshold=THRESHOLD,
                advice="Something caches this layer's attention between steps. Turn the cache off, "
                "or refresh it more often.",
                command=sample_again(run),
                evidence=draw(run, "steps", "--layer", str(site.index)),
                layer=site.index,
                steps=step_range(steps[1:], holds),
                branch="cond",
            )
        )
    return found


RULE = Rule(
    "copied-steps",
    "Does every layer look anew at every step?",
    "largest relative difference of any statistic of a layer to the step before",
    THRESHOLD,
    check,
)
