"""Curves over the steps: the means are of the run's numbers, the bands are of its samples."""

import numpy as np
import pytest

from ditscope.analysis.confidence import interval
from ditscope.analysis.steps import step_curves
from tests.analysis.constructed import with_statistics


def test_a_curve_is_the_mean_over_layers_and_heads(tmp_path):
    random = np.random.default_rng(0)
    entropy = random.uniform(0.5, 2.5, (5, 2, 3, 2, 4))
    run = with_statistics(tmp_path / "run", {"entropy": entropy})
    found = step_curves(run, branch="uncond")
    assert found["mean"].dims == ("metric", "step")
    np.testing.assert_allclose(found["mean"][0], entropy[:, 1].mean((1, 2, 3)), rtol=1e-6)
    one = step_curves(run, layers=[1])
    np.testing.assert_allclose(one["mean"][0], entropy[:, 0, :, 1].mean((1, 2)), rtol=1e-6)


def test_a_band_is_the_interval_over_samples(tmp_path):
    entropy = np.random.default_rng(1).uniform(0.5, 2.5, (4, 1, 6, 2, 2)).astype(np.float32)
    run = with_statistics(tmp_path / "run", {"entropy": entropy})
    found = step_curves(run)
    values = run.stats["entropy"].sel(branch="cond").astype(float).mean(["layer", "head"])
    expected = interval(values)
    np.testing.assert_allclose(found["low"][0], expected["low"])
    assert (found["low"] < found["mean"]).all() and (found["mean"] < found["high"]).all()
    assert found.attrs["samples"] == 6


@pytest.mark.parametrize("branches", [1, 2])
def test_one_step_one_sample_and_no_guidance_are_enough(tmp_path, branches):
    entropy = np.ones((1, branches, 1, 1, 1))
    found = step_curves(with_statistics(tmp_path / "run", {"entropy": entropy}))
    assert found["mean"].values.tolist() == [[1.0]]
    assert np.isnan(found["low"]).all()


def test_heads_that_a_layer_does_not_have_are_left_out(tmp_path):
    entropy = np.ones((2, 1, 1, 2, 3))
    entropy[..., 1, 1:] = np.nan
    entropy[..., 1, 0] = 2.0
    found = step_curves(with_statistics(tmp_path / "run", {"entropy": entropy}))
    np.testing.assert_allclose(found["mean"], 1.5)
