"""Rule: late steps that turn away from the object."""

from __future__ import annotations

import math

import xarray

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.object_rule import LATE, ObjectRule, stored_within
from ditscope.analysis.diagnose.seen import Seen


class LostObject(ObjectRule):
    """Late in the run the object receives less than in the run's own middle."""

    name = "lost-object"
    question = "Do late steps keep looking at the object?"
    measurement = (
        "logarithm of what a patch of the object receives over what one of the background does, "
        "mean over layers: how far it falls from the middle third of the steps to the last"
    )
    threshold = Threshold(
        "at least",
        round(math.log(1.5), 3),
        "(log ratio)",
        "absolute: in healthy runs the ratio moves by a tenth or so once the object is there",
    )
    unit = "(log ratio)"
    floor = 0.15
    quantity, sign = "lift", -1
    margin = 1.5
    message = "late in the run attention turns from the object to the background"
    advice = (
        "Something acts on the last steps alone: a schedule of guidance or of edits, a cache, "
        "another network for late steps. Draw it with the same guidance throughout."
    )
    picture = ("timesteps",)

    def measured(self, seen: Seen, calibrated: bool) -> xarray.DataArray:
        """The fall (step, sample), mean over layers; as it is, calibrated or not."""
        lift = seen.objects()[self.quantity].mean("layer", skipna=True)
        steps = len(seen.run.steps)
        middle = stored_within(lift, round(steps * LATE), round(steps * (1 - LATE)))
        return middle.mean("step") - lift
