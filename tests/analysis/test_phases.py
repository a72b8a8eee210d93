"""Phases of constructed curves: where they bend is found, and where nothing bends, nothing is."""

from itertools import combinations

import numpy as np
import pytest

from ditscope.analysis.phases import _line_costs, _starts, phases
from tests.analysis.constructed import with_statistics


def curve(run_steps, bends):
    """A line that changes its slope at each bend."""
    slope, value, found = 0.05, 1.0, []
    for step in range(run_steps):
        slope = -1.4 * slope if step in bends else slope
        value += slope
        found.append(value)
    return np.array(found)


def run_of(path, series, samples=4, noise=0.0, seed=0):
    shape = (len(series), 1, samples, 2, 2)
    values = series[:, None, None, None, None] * np.ones(shape)
    values += noise * np.random.default_rng(seed).normal(size=shape)
    return with_statistics(path, {"entropy": values, "received_max": values / 10})


@pytest.mark.parametrize("bends", [(), (12,), (8, 20)])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_bends_are_found(tmp_path, bends, noise):
    found = phases(run_of(tmp_path / "run", curve(30, bends), noise=noise))
    assert found.sizes["phase"] == len(bends) + 1
    assert found["first_step"].values[0] == 0 and found["last_step"].values[-1] == 29
    for step, bend in zip(found["first_step"].values[1:], bends, strict=True):
        assert abs(step - bend) <= 1
    assert found.attrs["explained"] > 0.8


@pytest.mark.parametrize("samples", [2, 8])
def test_noise_is_one_phase(tmp_path, samples):
    found = phases(run_of(tmp_path / "run", np.full(30, 1.5), samples=samples, noise=0.1))
    assert found.sizes["phase"] == 1


def test_a_jump_is_a_boundary(tmp_path):
    found = phases(run_of(tmp_path / "run", np.repeat([1.0, 2.0], [7, 13]), samples=1))
    assert found["first_step"].values.tolist() == [0, 7]
    assert found["last_step"].values.tolist() == [6, 19]
    np.testing.assert_allclose(found["first_noise"], [1, 1 - 7 / 20])
    np.testing.assert_allclose(found["level"].sel(metric="entropy"), [1, 2])
    np.testing.assert_allclose(found["change"].sel(metric="entropy"), 0, atol=1e-6)
    assert np.isnan(found["first_least"]).all()


def test_change_is_the_rise_of_the_line(tmp_path):
    found = phases(run_of(tmp_path / "run", np.linspace(1.0, 2.0, 11)))
    assert found.sizes["phase"] == 1
    np.testing.assert_allclose(found["change"].sel(metric="entropy"), 1, rtol=1e-5)


def test_a_boundary_that_one_sample_makes_is_uncertain(tmp_path):
    values = np.ones((20, 1, 3, 1, 1)) * curve(20, (10,))[:, None, None, None, None]
    sure = phases(with_statistics(tmp_path / "sure", {"entropy": values}))
    assert (sure["first_least"] == sure["first_most"]).all()
    values[:, 0, 0, 0, 0] = 3 * curve(20, (5,))
    doubtful = phases(with_statistics(tmp_path / "doubtful", {"entropy": values}))
    assert (doubtful["first_least"] < doubtful["first_most"]).any()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_few_steps_are_one_phase(tmp_path, steps):
    found = phases(run_of(tmp_path / "run", np.arange(1.0, steps + 1), samples=1))
    assert found.sizes["phase"] == 1
    assert found["last_step"].values.tolist() == [steps - 1]


def test_what_does_not_change_is_one_phase(tmp_path):
    found = phases(run_of(tmp_path / "run", np.ones(12)))
    assert (found.sizes["phase"], found.attrs["explained"]) == (1, 1.0)


def test_costs_are_those_of_least_squares():
    scaled = np.random.default_rng(0).normal(size=(9, 3))
    cost = _line_costs(scaled)
    for i, j in combinations(range(9), 2):
        x = np.arange(i, j + 1)
        part = scaled[i : j + 1]
        apart = [y - np.polyval(np.polyfit(x, y, 1), x) for y in part.T]
        assert cost[i, j] == pytest.approx(np.square(apart).sum(), abs=1e-9)


def test_boundaries_are_the_best_of_all():
    random = np.random.default_rng(4)
    data = random.normal(size=(14, 1, 2)).cumsum(0)
    mean = data[:, 0]
    scaled = (mean - mean.mean(0)) / mean.std(0)
    cost = _line_costs(scaled)
    for count in (2, 3):
        tried = {
            cuts: sum(
                cost[first, last - 1] for first, last in zip((0, *cuts), (*cuts, 14), strict=True)
            )
            for cuts in combinations(range(3, 12), count - 1)
            if all(b - a >= 3 for a, b in zip((0, *cuts), (*cuts, 14), strict=True))
        }
        starts, _ = _starts(data, count)
        assert tuple(starts[1:]) == min(tried, key=tried.get)
