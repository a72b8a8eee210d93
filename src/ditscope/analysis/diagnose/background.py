"""Rule: late steps that still look at the background."""

from __future__ import annotations

import math

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.object_rule import ObjectRule


class Background(ObjectRule):
    """Patches of the background receive more, late in the run, than in healthy runs."""

    name = "background"
    question = "Do late steps look at the object?"
    measurement = (
        "logarithm of what a patch of the background receives over what one of the object does, "
        "mean over layers, in the last third of the steps"
    )
    threshold = Threshold(
        "at least",
        round(math.log(3), 3),
        "(log ratio)",
        "absolute: three times as much for the background, where attention was even",
    )
    quantity, sign = "lift", -1
    message = "late in the run attention is still on the background, not on the object"
    advice = (
        "The object may never have been formed: look at the steps before. A stronger guidance "
        "holds the model to its class."
    )
    changes = ("--cfg-scale", "6", "--qk-steps", "5")
    picture = ("timesteps",)
