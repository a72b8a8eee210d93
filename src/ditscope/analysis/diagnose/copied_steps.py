"""Rule: a layer that repeats the attention of the step before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect, curve_of, step_range
from ditscope.analysis.diagnose.seen import Seen


class CopiedSteps(Rule):
    """A layer with steps at which every head repeats every statistic of the step before."""

    name = "copied-steps"
    question = "Does every layer look anew at every step?"
    measurement = "largest relative difference of any statistic of a layer to the step before"
    threshold = Threshold(
        "at most",
        1e-6,
        "relative difference",
        "absolute: latents differ from step to step, and with them every number by more than "
        "rounding",
    )

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of layers."""
        values = seen.statistics()
        steps = values["step"].values
        if len(steps) < 2:
            return
        for site in seen.sites:
            here = values.sel(layer=site.index).isel(head=slice(0, site.heads))
            here = here.isel(head=~seen.even_heads(site.index))  # those never change
            data = here.transpose("step", ...).values.reshape(len(steps), -1)
            data = data[:, numpy.isfinite(data).all(0)]
            if not data.size:
                continue
            size = numpy.maximum(numpy.abs(data[1:]), 1e-12)
            apart = (numpy.abs(numpy.diff(data, axis=0)) / size).max(1)
            holds = threshold.reached(apart)
            if holds.any():
                yield Suspect(
                    message=f"{holds.sum()} of {len(steps)} steps repeat the attention of the step "
                    "before, in every head and sample",
                    advice="Something caches this layer's attention between steps. Turn the cache "
                    "off, or refresh it more often.",
                    measured=float(apart[holds].max()),
                    layer=site.index,
                    steps=step_range(steps[1:], holds),
                    curve=curve_of(steps[1:], apart),
                    picture=("steps", "--layer", str(site.index)),
                )
