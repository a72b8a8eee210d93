"""Statistics as one array: what is taken, what is refused, and what even attention would have."""

import numpy as np
import pytest

from ditscope.analysis.recorded import map_steps, recorded, relative_to_even
from ditscope.errors import BadRequest
from tests.analysis.constructed import statistics_of, with_maps
from tests.analysis.recorded import record


def test_numbers_are_those_of_the_run(run):
    found = recorded(run, metrics=["rms_distance", "entropy"], layers=[2, 0])
    assert found.dims == ("metric", "step", "sample", "layer", "head")
    assert found["unit"].values.tolist() == ["patches", "nats"]
    expected = run.stats["entropy"].sel(branch="cond", layer=[2, 0])
    np.testing.assert_array_equal(found.sel(metric="entropy"), expected)


def test_steps_without_the_branch_are_left_out(run):
    assert recorded(run, branch="uncond")["step"].values.tolist() == [1, 2, 3]


@pytest.mark.parametrize("grid", [(4, 5), (1, 6), (3, 3)])
def test_even_attention_is_the_unit(tmp_path, grid):
    count = grid[0] * grid[1]
    even = np.full((1, count, count), 1 / count)
    run = with_maps(tmp_path / "run", lambda *place: even, grid=grid)
    measured = statistics_of(even, grid)
    found = relative_to_even(run, recorded(run))
    assert set(found["unit"].values.tolist()) == {"of even attention"}
    np.testing.assert_allclose(found, 1, rtol=1e-5)
    assert all(value[0] > 0 for value in measured.values())


def test_one_patch_has_no_even_distance(tmp_path):
    run = with_maps(tmp_path / "run", lambda *place: np.ones((1, 1, 1)), grid=(1, 1))
    found = relative_to_even(run, recorded(run))
    assert np.isnan(found.sel(metric=["entropy", "rms_distance"])).all()
    assert (found.sel(metric="received_max") == 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["gini"]}, "metric: 'gini' is not in this run; expected one of entropy, rms"),
        ({"layers": [3]}, "layer: 3 is not in this run; expected an integer from 0 to 2"),
        ({"layers": []}, "layers: no layer is named"),
        ({"branch": "both"}, "branch: 'both' is not in this run; expected one of cond, uncond"),
    ],
)
def test_bad_requests_name_the_field_and_the_range(run, options, words):
    with pytest.raises(BadRequest) as caught:
        recorded(run, **options)
    assert words in str(caught.value)


def test_what_is_missing_is_named_with_the_option_that_records_it(tmp_path):
    bare = record(tmp_path / "bare", layers=1, steps=1, kept=False, qk_steps=())
    with pytest.raises(BadRequest, match=r"recorded no statistics(.|\n)*--attention-debug"):
        recorded(bare)
    with pytest.raises(BadRequest, match=r"no Q and K(.|\n)*--qk-steps 5"):
        map_steps(bare)
    with pytest.raises(BadRequest, match=r"'uncond' is not in this run(.|\n)*--cfg-scale 4"):
        map_steps(bare, "uncond")
