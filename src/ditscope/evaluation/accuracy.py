"""How often a classifier names the class that a picture was drawn for.

Shapes: B rows, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): it holds for few trials and for shares near 0 or 1.

    (0, 1) without trials.
    """
    if trials == 0:
        return 0.0, 1.0
    share, squared = successes / trials, Z_95**2
    middle = share + squared / (2 * trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + squared / (4 * trials**2))
    whole = 1 + squared / trials
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


@dataclass(frozen=True)
class ClassAccuracy:
    """Pictures of one class, and what they were taken for."""

    name: str
    correct: int
    count: int
    confidence: float  # mean probability that the classifier gives to this class, 0 to 1
    mistaken_for: dict[str, int]  # other classes, the most frequent first


@dataclass(frozen=True)
class Accuracy:
    """All pictures together, and each class that was drawn, the worst first.

    Of classes that are named equally often the one with the lower confidence is the worse.
    """

    correct: int
    count: int
    confidence: float
    classes: tuple[ClassAccuracy, ...]


class Confusion:
    """Counts of (class drawn for, class named); memory does not grow with the pictures."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        size = len(self.class_names)
        self.counts = np.zeros((size, size), np.int64)
        self.confidence = np.zeros(size)  # sums of probabilities

    def add(self, drawn_for: NDArray[np.int64], scores: NDArray[np.floating]) -> None:
        """Count pictures by their labels (B,) and what has the highest of the scores (B, K).

        Scores are before softmax.
        """
        exact = scores.astype(np.float64)
        powers = np.exp(exact - exact.max(axis=1, keepdims=True))
        probability = powers[np.arange(len(powers)), drawn_for] / powers.sum(axis=1)
        np.add.at(self.counts, (drawn_for, scores.argmax(axis=1)), 1)
        np.add.at(self.confidence, drawn_for, probability)

    def accuracy(self) -> Accuracy:
        """What was counted. Classes that were not drawn are left out."""
        rows = [
            self._of_class(label)
            for label in range(len(self.class_names))
            if self.counts[label].any()
        ]
        rows.sort(key=lambda row: (row.correct / row.count, row.confidence))
        right, count = int(np.trace(self.counts)), int(self.counts.sum())
        return Accuracy(right, count, float(self.confidence.sum()) / count, tuple(rows))

    def _of_class(self, label: int) -> ClassAccuracy:
        row = self.counts[label]
        wrong = [other for other in np.argsort(-row, kind="stable") if other != label]
        return ClassAccuracy(
            self.class_names[label],
            int(row[label]),
            int(row.sum()),
            float(self.confidence[label] / row.sum()),
            {self.class_names[other]: int(row[other]) for other in wrong if row[other]},
        )
