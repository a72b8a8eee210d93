"""Rule: heads of one layer that do the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Array, Rule, Suspect
from ditscope.analysis.diagnose.seen import Seen

LEAST_NUMBERS = 3
"""Fewer numbers may agree by chance."""


class RedundantHeads(Rule):
    """Pairs of heads of a layer that have the same statistics at all steps: one is a copy."""

    name = "redundant-heads"
    question = "Do the heads of a layer differ?"
    measurement = (
        "largest relative difference of any statistic of attention between two heads, over all "
        "steps and samples"
    )
    threshold = Threshold(
        "at most",
        1e-5,
        "relative difference",
        "absolute: equal heads differ by rounding in float32; by chance, heads do not agree in "
        "every statistic of every step and sample",
    )
    side, unit, margin = "at most", "relative difference", 2.0

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Pairs, the most alike first."""
        pairs = [
            (float(apart.max()), layer, pair)
            for layer, pair, apart in _pairs(seen)
            if threshold.reached(apart.max())
        ]
        for measured, layer, pair in sorted(pairs):
            yield Suspect(
                message="two heads have the same statistics at every step: one is a copy of the "
                "other",
                advice="Compare the weights of the two heads: a conversion may have repeated one. "
                "If they are equal, see whether the picture needs both.",
                measured=measured,
                layer=layer,
                heads=pair,
                changes=("--ablate-heads", f"{layer}:{pair[1]}"),
            )

    def worst(self, seen: Seen) -> Array:
        """The two heads that are most alike in each picture."""
        return numpy.min([apart for _, _, apart in _pairs(seen)], axis=0)


def _pairs(seen: Seen) -> Iterator[tuple[int, tuple[int, int], Array]]:
    """Layer, two heads of it, and the largest relative difference in each sample."""
    values = seen.statistics()
    kept = [name for name in values["metric"].values.tolist() if name != "output_norm"]
    values = values.sel(metric=kept)  # of copied queries and keys, not of values
    for site in seen.sites:
        here = values.sel(layer=site.index).isel(head=slice(0, site.heads))
        data = here.transpose("head", "sample", ...).values
        data = data.reshape(*data.shape[:2], -1)
        data = data[:, :, numpy.isfinite(data).all((0, 1))]
        if data.shape[2] * data.shape[1] < LEAST_NUMBERS:
            continue
        even = seen.even_heads(site.index)  # another rule's
        for one, other in combinations(range(site.heads), 2):
            if even[one] or even[other]:
                continue
            size = numpy.maximum(numpy.abs(data[one]), numpy.abs(data[other]))
            apart = numpy.abs(data[one] - data[other]) / numpy.maximum(size, 1e-12)
            yield site.index, (one, other), apart.max(1)
