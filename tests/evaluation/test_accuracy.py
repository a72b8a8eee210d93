"""Shares with their intervals, and what is mistaken for what."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ditscope.evaluation.accuracy import Z_95, Confusion, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_of_newcombe_1998(successes, trials, low, high) -> None:
    assert wilson(successes, trials) == (
        pytest.approx(low, abs=6e-5),
        pytest.approx(high, abs=6e-5),
    )


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (3, 3), (7, 40), (950, 1000)])
def test_ends_are_the_shares_that_lie_z_standard_errors_away(successes, trials) -> None:
    share = successes / trials
    for end in wilson(successes, trials):
        gap = Z_95 * math.sqrt(end * (1 - end) / trials)
        assert abs(share - end) == pytest.approx(gap, abs=1e-12)


def test_nothing_is_known_without_trials() -> None:
    assert wilson(0, 0) == (0, 1)


def scores_for(named: list[int]) -> np.ndarray:
    """Scores of four classes: probability 0.7 for the one that is named, 0.1 for the others."""
    return np.log(np.where(np.arange(4) == np.array(named)[:, None], 0.7, 0.1)).astype(np.float32)


def test_classes_are_told_the_worst_first_with_their_mistakes() -> None:
    confusion = Confusion(("ant", "bee", "cat", "dog"))
    confusion.add(np.array([0, 0, 0, 1, 1]), scores_for([0, 0, 0, 2, 1]))
    confusion.add(np.array([1, 1, 2, 2]), scores_for([2, 0, 2, 3]))
    found = confusion.accuracy()
    assert (found.correct, found.count) == (5, 9)
    assert [row.name for row in found.classes] == ["bee", "cat", "ant"]  # no dog was drawn
    worst = found.classes[0]
    assert (worst.correct, worst.count) == (1, 4)
    assert list(worst.mistaken_for.items()) == [("cat", 2), ("ant", 1)]
    assert worst.confidence == pytest.approx((0.7 + 3 * 0.1) / 4)
    assert found.confidence == pytest.approx((5 * 0.7 + 4 * 0.1) / 9)


def test_of_classes_that_are_always_right_the_less_certain_is_the_worse() -> None:
    confusion = Confusion(("ant", "bee"))
    confusion.add(np.array([0, 1]), np.array([[900.0, 0.0], [0.0, 1.0]]))
    found = confusion.accuracy()
    assert [row.name for row in found.classes] == ["bee", "ant"]
    assert found.classes[0].confidence == pytest.approx(1 / (1 + np.exp(-1)))
    assert found.classes[1].confidence == 1
