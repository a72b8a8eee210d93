"""Rule: heads whose attention is even, whatever they are given."""

from __future__ import annotations

import numpy

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.diagnose.measured import mean_and_interval, statistic
from ditscope.analysis.head_kinds import EVEN
from ditscope.runs.reader import Run

THRESHOLD = Threshold(
    "at least", EVEN, "of log N", "absolute: even attention has 1, less rounding in bfloat16"
)


def check(run: Run) -> list[Finding]:
    """One finding per layer with heads that are even at every step of every sample."""
    entropy = statistic(run, "entropy", relative=True)
    least = entropy.min(["step", "sample"], skipna=False)
    found = []
    for layer in least["layer"].values.tolist():
        heads = numpy.nonzero((least.sel(layer=layer) >= THRESHOLD.value).values)[0]
        if not heads.size:
            continue
        values = entropy.sel(layer=layer, head=heads).mean(["step", "head"]).values
        found.append(
            Finding(
                rule=RULE.name,
                severity="error",
                message=f"{len(heads)} of {run.manifest.sites[layer].heads} heads look at all "
                "patches alike at every step: their queries or keys are zero",
                threshold=THRESHOLD,
                advice="Look at the query and key weights of these heads: pruned, lost in a "
                "conversion, or never trained.",
                command=sample_again(run),
                evidence=draw(run, "heads"),
                layer=layer,
                heads=tuple(heads.tolist()),
                branch="cond",
                **mean_and_interval(values),  # type: ignore[arg-type]
            )
        )
    return found


RULE = Rule(
    "dead-heads",
    "Does every head look at something?",
    "least entropy of a head over steps and samples, as a share of log N",
    THRESHOLD,
    check,
)
