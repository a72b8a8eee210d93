"""Statistics by layer, and whether they have a trend with depth."""

import numpy as np
import pytest

from ditscope.analysis.layers import depth_correlation, layer_profile
from ditscope.errors import BadRequest
from tests.analysis.constructed import with_statistics


def test_a_profile_is_the_mean_over_steps_and_heads(tmp_path):
    values = np.random.default_rng(0).uniform(0.5, 2.5, (3, 1, 4, 5, 2))
    run = with_statistics(tmp_path / "run", {"entropy": values})
    found = layer_profile(run)
    np.testing.assert_allclose(found["mean"][0], values.mean((0, 1, 2, 4)), rtol=1e-6)
    heads = values.mean((0, 1, 2))
    np.testing.assert_allclose(found["head_least"][0], heads.min(-1), rtol=1e-6)
    np.testing.assert_allclose(found["head_most"][0], heads.max(-1), rtol=1e-6)
    assert found["relative_depth"].values.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert (found["low"] < found["mean"]).all()
    one = layer_profile(run, layers=[3, 1], step=2)
    np.testing.assert_allclose(one["mean"][0], values[2].mean((0, 1, 3))[[3, 1]], rtol=1e-6)
    assert one["relative_depth"].values.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_trend_with_depth_is_found(tmp_path, sign):
    values = (
        np.ones((2, 1, 5, 6, 2)) + 0.2 * (np.arange(6) if sign > 0 else np.arange(6)[::-1])[:, None]
    )
    values += np.random.default_rng(1).normal(scale=0.02, size=values.shape)
    found = layer_profile(with_statistics(tmp_path / "run", {"entropy": values}))
    assert found["trend"].item() == pytest.approx(sign, abs=0.05)
    assert np.sign(found["trend_low"]) == np.sign(found["trend_high"]) == sign


def test_layers_in_any_order_have_the_same_trend(tmp_path):
    values = np.random.default_rng(2).uniform(0.5, 2, (1, 1, 2, 6, 1))
    run = with_statistics(tmp_path / "run", {"entropy": values})
    forward = layer_profile(run, layers=[0, 2, 3, 5])["trend"]
    np.testing.assert_allclose(layer_profile(run, layers=[5, 0, 3, 2])["trend"], forward)


def test_rank_correlation_is_that_of_the_definition():
    import xarray

    values = xarray.DataArray(
        [[1.0, 4.0, 9.0, 2.0], [2.0, 2.0, 5.0, 7.0]], dims=("sample", "layer")
    )
    values = values.assign_coords(layer=range(4))
    # 1 - 6 sum d^2 / n (n^2 - 1) without ties; Pearson of ranks (0.5, 0.5, 2, 3) with ties.
    expected = [1 - 6 * (0 + 1 + 1 + 4) / 60, np.corrcoef([0.5, 0.5, 2, 3], range(4))[0, 1]]
    np.testing.assert_allclose(depth_correlation(values), expected)


@pytest.mark.parametrize(("layers", "fill"), [(2, None), (5, 1.0), (5, np.nan)])
def test_what_has_no_trend_says_so(tmp_path, layers, fill):
    values = np.random.default_rng(3).uniform(1, 2, (1, 1, 1, layers, 1))
    if fill is not None:
        values[..., :-1, :] = fill
        values[..., -1:, :] = 1.0
    found = layer_profile(with_statistics(tmp_path / "run", {"entropy": values}))
    assert np.isnan(found["trend"]).all()


def test_a_step_that_is_not_there_is_refused(run):
    with pytest.raises(BadRequest, match="step: 4 is not in this run"):
        layer_profile(run, step=4)
    with pytest.raises(BadRequest, match="branch: 'uncond' was not evaluated at step 0"):
        layer_profile(run, step=0, branch="uncond")
