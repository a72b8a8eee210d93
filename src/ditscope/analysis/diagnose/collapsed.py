"""Rule: a layer whose every patch looks at a single one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect, held
from ditscope.analysis.diagnose.seen import Seen

LASTING = 0.5
"""Share of the steps."""


class Collapsed(Rule):
    """All heads of a layer spread over hardly one patch at half of the steps."""

    name = "collapsed"
    question = "Does every layer gather from more than one patch?"
    measurement = (
        "patches that the widest head of a layer spreads over, exp(entropy), at half of the steps"
    )
    threshold = Threshold(
        "at most",
        1.2,
        "patches",
        "absolute: 1 is the least there can be; entropy collapse after Zhai et al. 2023, "
        "arXiv:2303.06296",
    )

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of layers."""
        entropy = seen.statistic("entropy")
        for site in seen.sites:
            values = entropy.sel(layer=site.index).isel(head=slice(0, site.heads))
            widest = values.max("head", skipna=False)
            widest = widest.copy(data=numpy.exp(widest.values))
            found = None if site.keys < 2 else held(widest, threshold, LASTING)
            if found:
                yield Suspect(
                    message="every head looks at one patch: attention gathers nothing",
                    advice="Scores are too large: a softmax scale or temperature other than that "
                    "of training, or a training that has diverged. Try an earlier checkpoint.",
                    measured=found.measured,
                    layer=site.index,
                    steps=found.steps,
                    curve=found.curve,
                    changes=("--weights", "EARLIER"),
                    picture=("steps", "--layer", str(site.index)),
                )
