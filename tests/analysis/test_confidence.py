"""Bootstrap intervals: exact where they can be counted, and right as often as they claim."""

import numpy as np
import pytest
import xarray
from scipy import stats

from ditscope.analysis import confidence
from ditscope.analysis.confidence import interval


def labelled(values, axis="sample"):
    return xarray.DataArray(np.asarray(values, float), dims=(axis, "layer"))


def test_of_two_samples_it_is_known_exactly():
    # Resampled means are a, (a + b) / 2 and b with chances 1/4, 1/2, 1/4: the ends are a and b,
    # widened around the mean by sqrt(2) and by Student's t of one degree of freedom.
    wide = np.sqrt(2) * stats.t.ppf(0.975, 1) / stats.norm.ppf(0.975)
    found = interval(labelled([[1.0, 5.0], [3.0, 5.0]]))
    np.testing.assert_allclose(found["mean"], [2, 5])
    np.testing.assert_allclose(found["low"], [2 - wide, 5])
    np.testing.assert_allclose(found["high"], [2 + wide, 5])
    assert found.attrs["samples"] == 2


def test_its_width_is_that_of_the_standard_error():
    values = np.random.default_rng(1).normal(size=(40, 3))
    found = interval(labelled(values))
    error = values.std(0, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(
        (found["high"] - found["low"]) / error, 2 * stats.t.ppf(0.975, 39), rtol=0.06
    )


@pytest.mark.parametrize("size", [3, 4, 8, 12])
def test_it_holds_the_truth_about_as_often_as_it_says(size):
    values = np.random.default_rng(2).normal(size=(size, 2000))  # 2000 experiments; the truth is 0
    found = interval(labelled(values))
    inside = ((found["low"] <= 0) & (found["high"] >= 0)).mean()
    assert 0.93 <= inside <= 0.97


def test_one_sample_has_no_interval():
    found = interval(labelled([[1.0, 2.0]]))
    np.testing.assert_allclose(found["mean"], [1, 2])
    assert np.isnan(found["low"]).all() and np.isnan(found["high"]).all()


def test_what_is_not_known_stays_unknown():
    found = interval(labelled([[1.0, np.nan], [2.0, 3.0]]))
    assert np.isfinite(found["low"][0]) and np.isnan(found["mean"][1]) and np.isnan(found["low"][1])


def test_columns_do_not_depend_on_how_many_are_taken_together(monkeypatch):
    values = labelled(np.random.default_rng(3).normal(size=(5, 7)))
    expected = interval(values)
    monkeypatch.setattr(confidence, "COLUMNS", 2)
    xarray.testing.assert_allclose(interval(values), expected)


def test_axes_and_coordinates_are_kept():
    values = xarray.DataArray(
        np.ones((2, 3, 4)),
        dims=("layer", "sample", "step"),
        coords={"noise_level": ("step", [1.0, 0.7, 0.4, 0.1])},
    )
    found = interval(values)
    assert found["low"].dims == ("layer", "step")
    assert found["noise_level"].values.tolist() == [1.0, 0.7, 0.4, 0.1]
