"""The Frechet distance against closed forms and against arithmetic of fifty digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from ditscope.evaluation.frechet import T_95, Gaussian, estimate, frechet_distance
from ditscope.evaluation.groups import grouped
from ditscope.evaluation.moments import GroupedMoments


def distance(mean_a, covariance_a, mean_b, covariance_b) -> float:
    return frechet_distance(
        Gaussian.of(np.asarray(mean_a, float), np.asarray(covariance_a, float)),
        np.asarray(mean_b, float),
        np.asarray(covariance_b, float),
    )


def covariance_of(rng: np.random.Generator, width: int, rank: int) -> np.ndarray:
    rows = rng.normal(size=(rank, width))
    return rows.T @ rows / rank


def exact(mean_a, covariance_a, mean_b, covariance_b) -> float:
    """tr sqrtm(A B) of the matrices themselves, by eigenvalues of fifty digits."""
    with mpmath.workdps(50):
        product = mpmath.matrix(covariance_a.tolist()) * mpmath.matrix(covariance_b.tolist())
        values, _ = mpmath.eig(product)
        root = sum(mpmath.re(mpmath.sqrt(value)) for value in values)
        apart = sum(mpmath.mpf(x) ** 2 for x in (mean_a - mean_b).tolist())
        traces = sum(mpmath.mpf(x) for c in (covariance_a, covariance_b) for x in np.diag(c))
        return float(apart + traces - 2 * root)


def test_diagonal_gaussians() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.1, 9, 50), rng.uniform(0.1, 9, 50)
    mean_a, mean_b = rng.normal(size=50), rng.normal(size=50)
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert distance(mean_a, np.diag(a), mean_b, np.diag(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ranks", [(20, 20), (20, 3), (3, 4)], ids=["full", "one", "both"])
def test_full_covariances_also_where_they_are_singular(ranks: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        a, b = (covariance_of(rng, 6, rank) for rank in ranks)
        mean_a, mean_b = rng.normal(size=6), rng.normal(size=6)
        found = distance(mean_a, a, mean_b, b)
        assert found == pytest.approx(exact(mean_a, a, mean_b, b), rel=1e-7)
        assert found == pytest.approx(distance(mean_b, b, mean_a, a), rel=1e-7)


def test_equal_distributions_are_at_no_distance_and_shifts_add() -> None:
    rng = np.random.default_rng(2)
    covariance, mean = covariance_of(rng, 30, 10), rng.normal(size=30)
    assert distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-6)
    assert distance(mean, covariance, mean + 2, covariance) == pytest.approx(120, abs=1e-6)


def in_groups(rows: np.ndarray, groups: np.ndarray) -> GroupedMoments:
    moments = GroupedMoments(rows.shape[1], int(groups.max()) + 1)
    moments.add(rows, groups)
    return moments


def test_the_jackknife_takes_the_bias_away_and_knows_its_error() -> None:
    """Of 200 sets of 60 samples: the plain distance is far too high, the corrected one is not."""
    rng = np.random.default_rng(3)
    width, mean = 6, np.full(6, 0.3)
    covariance = np.eye(width)
    true = distance(np.zeros(width), np.eye(width), mean, covariance)
    plain, unbiased, covered = [], [], 0
    for _ in range(200):
        samples = in_groups(rng.normal(size=(60, width)) + mean, np.arange(60) % 10)
        found = estimate(np.zeros(width), np.eye(width), samples)
        assert found.interval is not None
        plain.append(found.distance)
        unbiased.append(found.unbiased)
        covered += found.interval[0] <= true <= found.interval[1]
    bias, error = np.mean(plain) - true, np.std(unbiased) / np.sqrt(200)
    assert bias > 0.2
    assert abs(np.mean(unbiased) - true) < max(3 * error, 0.1 * bias)
    assert 0.88 <= covered / 200 <= 1.0


@pytest.mark.parametrize("per_class", [2, 4, 5, 8, 10, 20])
def test_classes_in_turn_have_no_bias_left_either(per_class: int) -> None:
    """Twelve classes far apart, each drawn equally often, against all that there could be."""
    rng = np.random.default_rng(5)
    centres = 4 * rng.normal(size=(12, 3))
    mean, covariance = centres.mean(0), np.cov(centres.T, ddof=0) + np.eye(3)
    labels = list(range(12)) * per_class
    groups, number = grouped(len(labels), labels)
    assert number == min(per_class, 10)
    plain, unbiased, blind = [], [], []
    for _ in range(60):
        rows = centres[labels] + rng.normal(size=(len(labels), 3))
        found = estimate(mean, covariance, in_groups(rows, groups))
        plain.append(found.distance)
        unbiased.append(found.unbiased)
        by_number = np.arange(len(labels)) % 4  # always the same three classes
        blind.append(estimate(mean, covariance, in_groups(rows, by_number)).unbiased)
    error = np.std(unbiased) / np.sqrt(60)
    assert abs(np.mean(unbiased)) < max(4 * error, 0.25 * np.mean(plain))
    assert abs(np.mean(blind)) > 20 * abs(np.mean(unbiased))


def test_half_widths_are_those_of_student() -> None:
    """The share of Student's distribution between -t and t is 95 %, by integration."""
    with mpmath.workdps(20):
        for freedom, half in enumerate(T_95, start=1):
            scale = mpmath.gamma((freedom + 1) / 2) / mpmath.gamma(mpmath.mpf(freedom) / 2)
            scale /= mpmath.sqrt(freedom * mpmath.pi)
            power = -mpmath.mpf(freedom + 1) / 2
            share = mpmath.quad(
                lambda t, f=freedom, p=power: (1 + t * t / f) ** p, [-half, 0, half]
            )
            assert float(scale * share) == pytest.approx(0.95, abs=5e-5)


def test_one_group_has_a_distance_but_no_error() -> None:
    rows = np.random.default_rng(4).normal(size=(19, 2))
    found = estimate(np.zeros(2), np.eye(2), in_groups(rows, np.zeros(19, int)))
    assert (found.unbiased, found.standard_error, found.interval) == (None, None, None)
    assert found.samples == 19
