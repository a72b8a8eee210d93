"""Rule: heads whose softmax has run into its end: all weight on one key, at every query."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect, curve_of, step_range
from ditscope.analysis.diagnose.seen import Seen

LASTING = 0.2
"""Share of the steps."""


class Saturated(Rule):
    """Heads without any doubt at a fifth of the steps; a layer of such heads is `collapsed`."""

    name = "saturated"
    question = "Do the scores leave the softmax room?"
    measurement = "entropy of a head, mean over queries, at a fifth of the steps"
    threshold = Threshold(
        "at most",
        0.01,
        "nats",
        "absolute: over 0.99 of the weight of every query is on one key, so that the softmax has "
        "no gradient; after Zhai et al. 2023, arXiv:2303.06296",
    )

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of layers that have such heads."""
        entropy = seen.statistic("entropy")
        steps = entropy["step"].values
        for site in seen.sites:
            if site.keys < 2:
                continue
            here = entropy.sel(layer=site.index).isel(head=slice(0, site.heads))
            values = here.mean("sample", skipna=False).transpose("head", "step").values
            holds = threshold.reached(values)
            heads = numpy.nonzero(holds.mean(1) >= LASTING)[0]
            if heads.size:
                when = holds[heads].any(0)
                yield Suspect(
                    message=f"{len(heads)} of {site.heads} heads put all weight on one key: their "
                    "scores are so large that the softmax is a choice",
                    advice="Scores overflow in training, or queries and keys were scaled twice. "
                    "Make them smaller and see whether the picture is better.",
                    measured=here.isel(head=heads, step=when).mean(["head", "step"]).values,
                    layer=site.index,
                    heads=heads.tolist(),
                    steps=step_range(steps, numpy.asarray(when)),
                    curve=curve_of(steps, values[heads].mean(0)),
                    changes=("--temperature", "3", "--temperature-layers", str(site.index)),
                )
