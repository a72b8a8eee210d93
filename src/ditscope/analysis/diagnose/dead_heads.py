"""Rule: heads whose attention is even, whatever they are given."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect, curve_of, step_range
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.head_kinds import EVEN

LASTING = 0.2
"""Share of the steps."""


class DeadHeads(Rule):
    """Heads that look at all patches alike in every sample, at a fifth of the steps or more."""

    name = "dead-heads"
    question = "Does every head look at something?"
    measurement = (
        "least entropy of a head over samples, as a share of log N, at a fifth of the steps"
    )
    threshold = Threshold(
        "at least", EVEN, "of log N", "absolute: even attention has 1, less rounding in bfloat16"
    )

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of layers that have such heads."""
        entropy = seen.statistic("entropy", relative=True)
        steps = entropy["step"].values
        for site in seen.sites:
            here = entropy.sel(layer=site.index).isel(head=slice(0, site.heads))
            holds = threshold.reached(
                here.min("sample", skipna=False).transpose("head", "step").values
            )
            heads = numpy.nonzero(holds.mean(1) >= LASTING)[0]
            if heads.size:
                when = holds[heads].any(0)
                dead = here.isel(head=heads)
                yield Suspect(
                    message=f"{len(heads)} of {site.heads} heads look at all patches alike"
                    + (" at every step" if when.all() else "")
                    + ": their queries or keys are zero",
                    advice="Look at the query and key weights of these heads: pruned, lost in a "
                    "conversion, or never trained. See whether the picture needs them.",
                    measured=dead.isel(step=when).mean(["step", "head"]).values,
                    layer=site.index,
                    heads=heads.tolist(),
                    steps=step_range(steps, numpy.asarray(when)),
                    curve=curve_of(steps, dead.mean(["head", "sample"]).values),
                    changes=("--ablate-heads", _places(site.index, heads.tolist())),
                )


def _places(layer: int, heads: list[int]) -> str:
    """Heads as `--ablate-heads` reads them."""
    return ",".join(f"{layer}:{head}" for head in heads)
