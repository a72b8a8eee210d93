"""Rule: parts of the object that never attend to each other."""

from __future__ import annotations

import math

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.object_rule import ObjectRule


class BrokenObject(ObjectRule):
    """The halves of the object give each other less, late in the run, than in healthy runs."""

    name = "broken-object"
    question = "Do the parts of the object attend to each other?"
    measurement = (
        "logarithm of an even share over what one half of the object gives to a patch of the "
        "other, mean over layers, in the last third of the steps"
    )
    threshold = Threshold(
        "at least",
        round(math.log(4), 3),
        "(log ratio)",
        "absolute: a quarter of what even attention would give",
    )
    quantity, sign = "bond", -1
    message = "the parts of the object hardly attend to each other: its structure may be broken"
    advice = (
        "Look whether the object is in one piece. Flatter attention in the late layers lets parts "
        "see each other."
    )
    changes = ("--temperature", "1.3", "--qk-steps", "5")
