"""One number per head: which numbers, averaged over what, and what is refused."""

import math

import numpy as np
import pytest

from ditscope.analysis.atlas import HeadAtlas, head_atlas
from ditscope.errors import BadRequest
from tests.analysis.recorded import attention, record, statistics


def test_one_step_of_one_sample_is_the_recorded_number(run):
    atlas = head_atlas(run, "rms_distance", step=2, sample=1)
    assert atlas.values.dims == ("layer", "head")
    expected = [
        [statistics(attention(layer, head, 2))["rms_distance"] for head in range(3)]
        for layer in range(3)
    ]
    np.testing.assert_allclose(atlas.values, expected, rtol=1e-5)


def test_the_mean_is_over_steps_and_samples_that_were_evaluated(run):
    conditional = head_atlas(run)
    expected = run.stats["entropy"].sel(branch="cond").mean(["step", "sample"])
    np.testing.assert_allclose(conditional.values, expected, rtol=1e-6)
    unconditional = head_atlas(run, branch="uncond").values  # not evaluated at step 0
    expected = run.stats["entropy"].sel(branch="uncond", step=[1, 2, 3]).mean(["step", "sample"])
    np.testing.assert_allclose(unconditional, expected, rtol=1e-6)


def test_greatest_possible_entropy_is_that_of_even_attention(run):
    atlas = head_atlas(run)
    np.testing.assert_allclose(atlas.maximum, math.log(48))
    assert (atlas.values <= atlas.maximum).all()


def test_extremes_are_the_lowest_and_the_highest_head(run):
    atlas = head_atlas(run)
    least, most = atlas.extremes
    assert atlas.values.values[least] == atlas.values.min()
    assert atlas.values.values[most] == atlas.values.max()


@pytest.mark.parametrize("fill", [2.0, 0.0, np.nan])
def test_heads_that_do_not_differ_have_no_extremes(run, fill):
    atlas = head_atlas(run)
    same = HeadAtlas(**{**vars(atlas), "values": atlas.values * 0 + fill})
    assert same.extremes == ()


def test_what_was_not_evaluated_has_no_atlas(run):
    with pytest.raises(BadRequest, match="entropy has no value here"):
        head_atlas(run, step=0, branch="uncond")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"metric": "gini"},
            "metric: 'gini' is not in this run; expected one of entropy, rms_distance, received",
        ),
        ({"branch": "both"}, "branch: 'both' is not in this run; expected one of cond, uncond"),
        ({"step": 4}, "step: 4 is not in this run; expected an integer from 0 to 3"),
        ({"sample": -1}, "sample: -1 is not in this run; expected an integer from 0 to 1"),
    ],
)
def test_bad_requests_name_the_field_and_the_range(run, arguments, words):
    with pytest.raises(BadRequest) as caught:
        head_atlas(run, **arguments)
    assert words in str(caught.value)


def test_a_run_without_statistics_says_so(tmp_path):
    run = record(tmp_path / "run", layers=1, steps=2, kept=False)
    with pytest.raises(BadRequest, match="recorded no statistics"):
        head_atlas(run)
