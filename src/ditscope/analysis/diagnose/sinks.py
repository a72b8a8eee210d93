"""Rule: heads in which one patch receives the attention of all others."""

from __future__ import annotations

import numpy

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.diagnose.measured import mean_and_interval, statistic, step_range
from ditscope.analysis.head_kinds import SINK_EVEN, SINK_SHARE
from ditscope.runs.reader import Run

THRESHOLD = Threshold(
    "at least", SINK_SHARE, "of all attention", "absolute: Gu et al. 2024, arXiv:2410.10781"
)
OUT_OF_LINE = 5.0
"""Times the median head: where all heads have sinks, that is how the model works."""
LASTING = 0.2
"""Share of the steps."""


def check(run: Run) -> list[Finding]:
    """One finding per layer with heads that have a sink at a fifth of the steps or more."""
    received = statistic(run, "received_max", relative=False)
    known = received.values[numpy.isfinite(received.values)]
    typical = float(numpy.median(known)) if known.size else 1.0
    steps, found = received["step"].values, []
    for site in run.manifest.sites:
        least = max(SINK_SHARE, SINK_EVEN / site.keys, OUT_OF_LINE * typical)
        here = received.sel(layer=site.index).isel(head=slice(0, site.heads))
        holds = (here.mean("sample", skipna=False) >= least).transpose("head", "step").values
        heads = numpy.nonzero(holds.mean(1) >= LASTING)[0]
        if not heads.size or least > 1:
            continue
        when = numpy.asarray(holds[heads].any(0))
        values = here.isel(head=heads, step=when).mean(["head", "step"]).values
        found.append(
            Finding(
                rule=RULE.name,
                severity="warning",
                message=f"one patch takes much of the attention of all others, "
                f"{float(values.mean()) / typical:.0f} times as much as in the median head",
                threshold=THRESHOLD,
                advice="See which patch it is: a corner or plain background is a store for the "
                "model and mostly harmless, the object is not.",
                command=sample_again(run, "--qk-steps", "5"),
                evidence=draw(run, "heads", "--metric", "received_max"),
                layer=site.index,
                heads=tuple(heads.tolist()),
                steps=step_range(steps, when),
                branch="cond",
                **mean_and_interval(values),  # type: ignore[arg-type]
            )
        )
    return found


RULE = Rule(
    "sinks",
    "Does any patch take the attention of all others?",
    f"share of all attention that one key receives, at a fifth of the steps, and {OUT_OF_LINE:g} "
    "times that of the median head",
    THRESHOLD,
    check,
)
