"""Rule: a picture whose attention fits other classes better than its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Array, Rule, Suspect
from ditscope.analysis.diagnose.seen import Seen
from ditscope.errors import BadRequest, foreign, listed

NAMED = 3
"""How many of the classes that fit better are named."""


class ClassUnlike(Rule):
    """Classes whose pictures are unlike their reference, beyond what healthy pictures are."""

    name = "class-unlike"
    question = "Is each class attended to as in healthy runs?"
    measurement = (
        "mean square deviation of the pictures of a class from its reference, less that from the "
        "class that fits best"
    )
    unit = "squared standard deviations"
    floor = 0.5
    severity = "warning"
    margin = 1.5

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Classes, the strangest first."""
        scores, names = _scores(seen)
        labels = numpy.array(seen.labels)
        found = []
        for label in dict.fromkeys(labels.tolist()):
            if label not in names:
                continue
            mean = scores[labels == label].mean(0)
            own = names.index(label)
            excess = float(mean[own] - mean.min())
            if threshold.reached(numpy.array(excess)):
                better = [names[i] for i in mean.argsort()[:NAMED] if mean[i] < mean[own]]
                found.append((excess, label, better))
        for excess, label, better in sorted(found, reverse=True):
            yield Suspect(
                message=f"pictures of {foreign(label)} are attended to unlike its reference; more "
                f"like {listed(foreign(name) for name in better)}",
                advice="Check the order of the class names, and look whether the picture shows "
                "what it should; draw more of the class.",
                measured=excess,
                changes=("--num-samples", "8"),
                picture=("pictures",),
            )

    def worst(self, seen: Seen) -> Array:
        """How much better the best class fits each picture than its own."""
        scores, names = _scores(seen)
        return numpy.array(
            [
                row[names.index(label)] - row.min() if label in names else numpy.nan
                for row, label in zip(scores, seen.labels, strict=True)
            ]
        )


def _scores(seen: Seen) -> tuple[Array, tuple[str, ...]]:
    if seen.reference is None:
        raise BadRequest("there is no calibration", field="calibration", fix=seen.calibrate)
    return seen.reference.strangeness(seen.statistics())
