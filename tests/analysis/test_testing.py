"""Effect sizes and tests against counting, published examples, and their promised error rates."""

from itertools import combinations, product

import numpy as np
import pytest

from ditscope.analysis import testing


def columns(*values):
    return np.array(values, float).T


def test_effect_size_of_a_worked_example():
    # Means 5 and 8, both variances 2.5, ten values: d = 3 / sqrt(2.5), times 1 - 3 / (4 * 8 - 1).
    a, b = columns([3, 4, 5, 6, 7]), columns([6, 7, 8, 9, 10])
    assert testing.hedges_g(a, b)[0] == pytest.approx(1.8973666 * (1 - 3 / 31))
    assert testing.hedges_g(b, a)[0] == pytest.approx(-1.8973666 * (1 - 3 / 31))
    assert testing.paired_g(columns([1, 2, 3, 4, 5]))[0] == pytest.approx(3 / 1.5811388 * 0.8)


def test_exact_p_is_counted():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(4, 2)), random.normal([0, 2], size=(5, 2))
    both = np.concatenate([a, b])
    expected = []
    for column in range(2):
        values, observed = both[:, column], b[:, column].mean() - a[:, column].mean()
        tried = []
        for chosen in combinations(range(9), 5):
            inside = np.isin(np.arange(9), chosen)
            tried.append(values[inside].mean() - values[~inside].mean())
        expected.append(np.mean(np.abs(tried) >= abs(observed) - 1e-12))
    np.testing.assert_allclose(testing.permutation_p(a, b), expected)


def test_exact_p_of_pairs_is_counted():
    differences = np.random.default_rng(1).normal([0, 1], size=(6, 2))
    expected = [
        np.mean(
            [
                abs(np.dot(signs, column)) >= abs(column.sum()) - 1e-12
                for signs in product((1, -1), repeat=6)
            ]
        )
        for column in differences.T
    ]
    np.testing.assert_allclose(testing.sign_flip_p(differences), expected)


def test_groups_of_three_can_not_be_told_apart():
    a, b = columns([1, 2, 3]), columns([11, 12, 13])
    assert testing.permutation_p(a, b)[0] == pytest.approx(2 / 20)


@pytest.mark.parametrize("size", [5, 12])  # all rearrangements; a draw of them
def test_without_a_difference_p_is_as_rare_as_it_says(size):
    random = np.random.default_rng(2)
    a, b = random.normal(size=(size, 600)), random.normal(size=(size, 600))
    for p in (testing.permutation_p(a, b), testing.sign_flip_p(random.normal(size=(size, 600)))):
        assert 0 < p.min() and p.max() <= 1
        # Never more often than it says; with few samples not every p can occur.
        assert 0.04 < np.mean(p <= 0.1) < 0.13


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(3)
    for sizes in ((12, 10), (4, 3)):
        a, b = random.normal(size=(sizes[0], 2000)), 3 * random.normal(size=(sizes[1], 2000)) + 1
        low, high = testing.difference_bounds(a, b)
        assert 0.93 <= np.mean((low <= 1) & (high >= 1)) <= 0.97


def test_p_is_adjusted_as_in_published_examples():
    # R: p.adjust(c(0.005, 0.009, 0.05, 0.3), "BH")
    p = np.array([[0.05, 0.3], [0.005, 0.009]])
    expected = np.array([[0.2 / 3, 0.3], [0.018, 0.018]])
    np.testing.assert_allclose(testing.adjusted(p), expected)
    np.testing.assert_allclose(testing.adjusted(np.array([0.01, 0.02, 0.03, 0.04, 0.05])), 0.05)


def test_what_was_not_tested_does_not_count():
    found = testing.adjusted(np.array([0.02, np.nan, 0.02]))
    np.testing.assert_allclose(found, [0.02, np.nan, 0.02])
    assert np.isnan(testing.adjusted(np.array([np.nan]))).all()


def test_one_sample_says_nothing():
    one, two = np.ones((1, 3)), np.ones((2, 3))
    for values in (
        testing.hedges_g(one, two),
        testing.permutation_p(two, one),
        testing.paired_g(one),
        testing.sign_flip_p(one),
        *testing.difference_bounds(one, two),
    ):
        assert np.isnan(values).all()


def test_what_does_not_vary_has_no_effect_size():
    same = np.ones((4, 1))
    assert np.isnan(testing.hedges_g(same, same)).all()
    assert testing.permutation_p(same, same) == 1
    assert testing.sign_flip_p(same - same) == 1


def test_two_pairs_have_no_effect_size():
    """The correction for few samples would be exactly zero."""
    a = np.array([[1.0], [2.0]])
    b = np.array([[3.0], [7.0]])
    assert np.isnan(testing.paired_g(b - a)).all()
    assert np.isfinite(testing.hedges_g(a, b)).all()
