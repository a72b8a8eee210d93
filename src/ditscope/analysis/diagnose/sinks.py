"""Rule: heads in which one patch receives the attention of all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect, curve_of, step_range
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.head_kinds import SINK_EVEN, SINK_SHARE
from ditscope.analysis.recorded import METRIC

OUT_OF_LINE = 5.0
"""Times the median head: where all heads have sinks, that is how the model works."""
USUAL = 2.0
"""Times what the same head has in healthy runs."""
LASTING = 0.2
"""Share of the steps."""


class Sinks(Rule):
    """Heads with a sink at a fifth of the steps that healthy runs, where known, do not have."""

    name = "sinks"
    question = "Does any patch take the attention of all others?"
    measurement = (
        "share of all attention that one key receives, at a fifth of the steps, and "
        f"{OUT_OF_LINE:g} times that of the median head"
    )
    threshold = Threshold(
        "at least", SINK_SHARE, "of all attention", "absolute: Gu et al. 2024, arXiv:2410.10781"
    )
    severity = "warning"

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of layers that have such heads."""
        received = seen.statistic("received_max")
        known = received.values[numpy.isfinite(received.values)]
        typical = float(numpy.median(known)) if known.size else 1.0
        steps, usual = received["step"].values, _usual(seen)
        for site in seen.sites:
            least = max(threshold.value, SINK_EVEN / site.keys, OUT_OF_LINE * typical)
            here = received.sel(layer=site.index).isel(head=slice(0, site.heads))
            values = here.mean("sample", skipna=False).transpose("head", "step").values
            holds = values >= least
            if usual is not None:
                holds &= values >= USUAL * usual[:, site.index, : site.heads].T
            heads = numpy.nonzero(holds.mean(1) >= LASTING)[0]
            if not heads.size or least > 1:
                continue
            when = holds[heads].any(0)
            measured = here.isel(head=heads, step=when).mean(["head", "step"]).values
            yield Suspect(
                message="one patch takes much of the attention of all others, "
                f"{float(measured.mean()) / typical:.0f} times as much as in the median head",
                advice="See which patch it is: a corner or plain background is a store for the "
                "model and mostly harmless, the object is not.",
                measured=measured,
                layer=site.index,
                heads=heads.tolist(),
                steps=step_range(steps, numpy.asarray(when)),
                curve=curve_of(steps, values[heads].mean(0)),
                changes=("--qk-steps", "5"),
                picture=("heads", "--metric", "received_max"),
            )


def _usual(seen: Seen) -> numpy.ndarray | None:
    """What healthy runs have, (step, layer, head); None if that is not known."""
    if seen.reference is None or "received_max" not in seen.reference.calibration.metrics:
        return None
    mean, _ = seen.reference.expected(seen.statistics(), "cond")
    return mean.sel({METRIC: "received_max"}).values
