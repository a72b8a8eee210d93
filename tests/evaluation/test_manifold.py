"""Precision and recall against the definition, one pair of vectors after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ditscope.errors import BadRequest
from ditscope.evaluation import manifold
from ditscope.evaluation.manifold import precision_recall


def share_inside(points, centres, k) -> float:
    """Share of points that lie in the ball of any centre, by loops."""

    def away(a, b):
        return math.dist(a.tolist(), b.tolist())

    radii = [
        sorted(away(centre, other) for j, other in enumerate(centres) if j != i)[k - 1]
        for i, centre in enumerate(centres)
    ]
    inside = [
        any(away(point, centre) <= radius for centre, radius in zip(centres, radii, strict=True))
        for point in points
    ]
    return sum(inside) / len(points)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_the_definition(k: int, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "ROWS_AT_A_TIME", 16)
    rng = np.random.default_rng(k)
    data = rng.normal(size=(70, 4)) + offset
    samples = 0.6 * rng.normal(size=(70, 4)) + 0.8 + offset
    found = precision_recall(data, samples, k)
    assert found.precision == share_inside(samples, data, k)
    assert found.recall == share_inside(data, samples, k)
    assert 0 < found.recall < found.precision


def test_the_extremes() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(40, 3))
    same = precision_recall(data, data.copy())
    assert (same.precision, same.recall) == (1, 1)
    far = precision_recall(data, data + 100)
    assert (far.precision, far.recall) == (0, 0)
    one_place = precision_recall(data, np.tile(data[:1], (40, 1)))  # all samples the same
    assert one_place.precision == 1 and one_place.recall == 1 / 40


def test_both_sides_count_as_many_vectors() -> None:
    rng = np.random.default_rng(1)
    data, samples = rng.normal(size=(90, 2)), rng.normal(size=(30, 2))
    assert precision_recall(data, samples) == precision_recall(data[:30], samples)
    assert precision_recall(data, samples).count == 30


@pytest.mark.parametrize(("count", "k"), [(3, 3), (0, 1), (9, 0)])
def test_too_few_vectors_are_refused(count: int, k: int) -> None:
    rows = np.zeros((count, 2))
    with pytest.raises(BadRequest, match=f"{count} pictures on one side"):
        precision_recall(rows, rows, k)
