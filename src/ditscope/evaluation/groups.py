"""Which samples a jackknife leaves out together.

A jackknife repeats the experiment without some of its samples, so what it leaves out must look like
what is left. Where every class was drawn equally often, leaving out more of one class than of
another shifts the mean of the features, and the correction would be mostly that: -34 in the place
of 0 for 400 real scenes of 40 classes that went to ten groups by their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST = 10
"""Groups at most."""

SHUFFLE_SEED = 0


def grouped(count: int, labels: Sequence[int] | None) -> tuple[NDArray[np.int64], int]:
    """The group of each of `count` samples, and how many groups there are: 1 if none can be made.

    Samples whose classes occur equally often form groups in which they do so, too: as many as
    divide the number of a class. Classes whose numbers differ by more than one were drawn at
    random, as samples without labels may be: then samples go to ten groups at random.
    """
    whole = np.zeros(count, np.int64), 1
    if labels is not None:
        chosen = np.asarray(labels, np.int64)
        counts = np.bincount(chosen)
        counts = counts[counts > 0]
        least, most = int(counts.min()), int(counts.max())
        if least == most:
            groups = max((each for each in range(1, MOST + 1) if least % each == 0), default=1)
            return (_place_in_class(chosen) % groups, groups) if groups > 1 else whole
        if most - least == 1:
            return whole
    if count < 2 * MOST:
        return whole
    shuffled = np.random.default_rng(SHUFFLE_SEED).permutation(count)
    return shuffled % MOST, MOST


def _place_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many samples of the same class come before each."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, ordered)
    places = np.empty_like(labels)
    places[order] = np.arange(len(labels)) - first
    return places
