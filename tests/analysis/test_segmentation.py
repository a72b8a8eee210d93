"""Scores against masks: definitions written out pixel by pixel, and the two rivals."""

from itertools import product

import numpy as np
import pytest

from ditscope.analysis.segmentation import (
    FINDERS,
    area_under_curve,
    scored_against,
    scores,
    summary,
)
from ditscope.errors import BadRequest
from tests.analysis.constructed import with_maps
from tests.analysis.test_parts import GRID, drawn, tied


def random_case(seed):
    random = np.random.default_rng(seed)
    mask = random.random((7, 9))
    return random.random((3, 4)) > 0.5, random.integers(0, 5, (3, 4)) / 4, mask


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_their_definitions(seed):
    inside, score, mask = random_case(seed)
    truth = mask >= 0.5
    patch = {(y, x): (y * 3 // 7, x * 4 // 9) for y in range(7) for x in range(9)}
    found = np.array([[inside[patch[y, x]] for x in range(9)] for y in range(7)])
    height = np.array([[score[patch[y, x]] for x in range(9)] for y in range(7)])
    result = scores(inside, score, mask)
    assert result["iou"] == pytest.approx((found & truth).sum() / (found | truth).sum())
    wins = [(a > b) + (a == b) / 2 for a, b in product(height[truth], height[~truth])]
    assert result["auc"] == pytest.approx(np.mean(wins))
    best = np.unravel_index(score.argmax(), score.shape)
    centre = int((best[0] + 0.5) * 7 / 3), int((best[1] + 0.5) * 9 / 4)
    assert result["pointing"] == truth[centre]
    choices = []
    for chosen in product([False, True], repeat=12):
        choice = np.array(chosen).reshape(3, 4)
        picked = np.array([[choice[patch[y, x]] for x in range(9)] for y in range(7)])
        choices.append((picked & truth).sum() / (picked | truth).sum())
    assert result["ceiling"] == pytest.approx(max(choices))


def test_area_under_the_curve_at_its_ends():
    assert area_under_curve(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert area_under_curve(np.zeros(3), np.zeros(4)) == 0.5


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((6, 8)), "without an object"),
        (np.ones((6, 8)), "without an object"),
        (np.eye(2), "expected at least a pixel for each patch"),
    ],
)
def test_masks_that_cannot_be_scored(mask, words):
    with pytest.raises(BadRequest, match=words):
        scores(np.ones((3, 4), bool), np.ones((3, 4)), mask)


def masked(boxes, pixels=4):
    return np.stack([np.kron(drawn(box) == 1, np.ones((pixels, pixels))) for box in boxes])


def test_attention_that_shows_the_object_beats_its_rivals(tmp_path):
    boxes = [(1, 1, 5, 4), (2, 4, 6, 8), (4, 1, 7, 5), (1, 5, 4, 8), (3, 3, 7, 6), (2, 2, 5, 7)]
    maps = [tied(drawn(box)) for box in boxes]
    run = with_maps(
        tmp_path / "run",
        lambda step, branch, sample, layer: maps[sample][None],
        grid=GRID,
        samples=len(boxes),
        picture=lambda sample: np.full((32, 36, 3), 128, np.uint8),  # nothing is to be seen
    )
    found = scored_against(run, masked(boxes))
    assert found["finder"].values.tolist() == list(FINDERS)
    np.testing.assert_array_equal(found["iou"].sel(finder="attention"), 1)
    np.testing.assert_array_equal(found["ceiling"], 1)
    assert (found["parts"] == 2).all()
    means = summary(found)
    best = means.sel(measure="iou", finder="attention")
    assert float(best["mean"]) == pytest.approx(1) and float(best["low"]) == pytest.approx(1)
    for rival in FINDERS[1:]:
        worse = means.sel(measure="iou", finder=rival)
        assert float(worse["mean"]) < 0.6 and float(worse["p"]) == pytest.approx(2 / 2**6)
    share = masked(boxes)[0].mean()
    assert float(found["iou"].sel(finder="colour", sample=0)) == pytest.approx(share)


def test_one_sample_has_no_usual_position(tmp_path):
    box = (2, 2, 6, 6)
    run = with_maps(tmp_path / "run", lambda *place: tied(drawn(box))[None], grid=GRID)
    found = scored_against(run, masked([box]))
    assert np.isnan(found["iou"].sel(finder="position")).all()
    assert np.isnan(summary(found)["low"]).all()


def test_masks_must_be_those_of_the_samples(tmp_path):
    run = with_maps(tmp_path / "run", lambda *place: tied(drawn((2, 2, 6, 6)))[None], grid=GRID)
    with pytest.raises(BadRequest, match="one for each sample"):
        scored_against(run, np.ones((2, 8, 9)))
