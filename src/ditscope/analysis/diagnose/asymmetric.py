"""Rule: one side of the object gets the attention of both."""

from __future__ import annotations

import math

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.object_rule import ObjectRule


class Asymmetric(ObjectRule):
    """The left and the right half of the object receive unlike shares, late in the run."""

    name = "asymmetric"
    question = "Do both sides of the object get the same attention?"
    measurement = (
        "logarithm of what a patch of the object's left half receives over one of its right half, "
        "either way, mean over layers, in the last third of the steps"
    )
    threshold = Threshold(
        "at least",
        round(math.log(3), 3),
        "(log ratio)",
        "absolute: three times as much on one side; objects seen from the side have up to twice",
    )
    severity = "warning"
    quantity, sign = "tilt", 0
    message = "one side of the object receives much more attention than the other"
    advice = (
        "Some objects are like this. If both sides should be alike, draw other seeds: if it is "
        "always the same side, look at the position table."
    )
