"""Attention on the object, from maps that the test has made."""

import math

import numpy as np
import pytest

import ditscope as ds
from ditscope.analysis.diagnose.objects import halves, measures, object_measures
from tests.analysis.constructed import with_maps

GRID = (6, 8)
COUNT = GRID[0] * GRID[1]
OBJECT = np.zeros(GRID, bool)
OBJECT[2:5, 2:6] = True  # its left half is columns 2 and 3
INSIDE, LEFT = OBJECT.ravel(), (OBJECT & (np.arange(8) < 4)).ravel()
RIGHT = INSIDE & ~LEFT
STEPS, SAMPLES = 6, 3


def picture(sample):
    image = np.full((24, 32, 3), (120, 170, 230), np.uint8)
    image[8:20, 8:24] = (240, 130 + sample, 20)
    return image


def drawn(weights):
    """Rows that sum to 1, in two heads."""
    return np.stack([weights / weights.sum(-1, keepdims=True)] * 2)


def run_of(path, change):
    """A run whose attention is even but for `change(weights, step)`."""

    def weights(step, branch, sample, layer):
        each = np.ones((COUNT, COUNT))
        change(each, step)
        return drawn(each)

    return with_maps(
        path, weights, picture=picture, grid=GRID, steps=STEPS, samples=SAMPLES, layers=2
    )


def even(weights, step):
    pass


def on_background(weights, step):
    weights[:, ~INSIDE] *= 4


def turns_away(weights, step):
    if step >= 4:
        weights[:, ~INSIDE] *= 2


def torn(weights, step):
    weights[np.ix_(LEFT, RIGHT)] = 0.01
    weights[np.ix_(RIGHT, LEFT)] = 0.01


def lopsided(weights, step):
    weights[:, LEFT] *= 5


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (even, []),
        (on_background, ["background"]),
        (turns_away, ["lost-object"]),
        (torn, ["broken-object"]),
        (lopsided, ["asymmetric"]),
    ],
)
def test_what_is_wrong_with_the_object_is_named(tmp_path, change, rules):
    names = ["background", "lost-object", "broken-object", "asymmetric"]
    found = ds.diagnose(run_of(tmp_path / "run", change), names)
    assert [finding.rule for finding in found.findings] == rules
    assert set(found.checked) == set(names)
    for finding in found.findings:
        assert finding.steps == (4, 5) and finding.measured > finding.threshold.value


def test_the_measures_are_their_definitions(tmp_path):
    random = np.random.default_rng(0)
    maps = drawn(random.gamma(1.0, size=(COUNT, COUNT)))
    maps[1] = maps[1][::-1]
    found = measures(maps, np.arange(COUNT), OBJECT)
    lift, tilt, bond = [], [], []
    for head in maps:
        share = head.mean(0)
        lift.append(math.log(share[INSIDE].mean() / share[~INSIDE].mean()))
        tilt.append(math.log(share[LEFT].mean() / share[RIGHT].mean()))
        there, back = head[np.ix_(LEFT, RIGHT)].mean(), head[np.ix_(RIGHT, LEFT)].mean()
        bond.append(math.log((there + back) / 2 * COUNT))
    for name, expected in {"lift": lift, "tilt": tilt, "bond": bond}.items():
        assert found[name] == pytest.approx(np.mean(expected), rel=1e-9)


def test_even_attention_measures_nothing(tmp_path):
    found = object_measures(run_of(tmp_path / "run", even))
    assert found["lift"].shape == (STEPS, SAMPLES, 2)
    for name in ("lift", "tilt", "bond"):
        np.testing.assert_allclose(found[name], 0, atol=1e-5)


def test_a_patch_on_the_middle_is_in_no_half():
    mask = np.zeros((4, 7), bool)
    mask[1:3, 2:5] = True
    left, right = (half.reshape(4, 7) for half in halves(mask))
    assert left[:, 2].sum() == right[:, 4].sum() == 2 and not (left | right)[:, 3].any()
    upper, lower = (half.reshape(4, 7) for half in halves(mask, across_width=False))
    assert upper[1].sum() == lower[2].sum() == 3


def test_a_picture_without_an_object_is_said(tmp_path):
    run = with_maps(
        tmp_path / "run",
        lambda *place: drawn(np.ones((COUNT, COUNT))),
        picture=lambda sample: np.full((24, 32, 3), 100, np.uint8),
        grid=GRID,
        steps=STEPS,
    )
    found = ds.diagnose(run, ["background", "census"])
    assert "no object is found" in found.skipped["background"]


def test_a_run_without_late_maps_says_what_to_record(tmp_path):
    run = with_maps(
        tmp_path / "run",
        lambda *place: drawn(np.ones((COUNT, COUNT))),
        picture=picture,
        grid=GRID,
        steps=STEPS,
        qk_steps=(0, 1),
    )
    found = ds.diagnose(run, ["background", "census"])
    assert "no map is stored at steps 4 to 5" in found.skipped["background"]
    assert "--qk-steps" in found.skipped["background"]
