"""Received attention, its resampling to another grid, and where two sides differ."""

import numpy as np
import pytest

from ditscope.analysis.map_difference import map_difference
from ditscope.analysis.received import on_grid, received_maps
from ditscope.errors import BadRequest
from tests.analysis import heads
from tests.analysis.constructed import with_maps

GRID = (4, 5)


def weights(step, branch, sample, layer):
    return np.stack([heads.far(GRID, seed=step + 5 * sample + 50 * layer), heads.even(GRID)])


def test_it_is_the_sum_of_what_all_patches_give(tmp_path):
    run = with_maps(tmp_path / "run", weights, grid=GRID, steps=3, samples=2, layers=2)
    found = received_maps(run)
    maps = np.mean([weights(step, "cond", 1, 1) for step in range(3)], (0, 1))
    np.testing.assert_allclose(found[1, 1].values.ravel(), maps.sum(0), atol=1e-5)
    np.testing.assert_allclose(found.mean(["y", "x"]), 1, atol=1e-5)
    one = received_maps(run, layers=[1], head=0, steps=[2], samples=[1])
    expected = weights(2, "cond", 1, 1)[0].sum(0).reshape(1, 1, *GRID)
    np.testing.assert_allclose(one, expected, atol=1e-5)
    with pytest.raises(BadRequest, match="head: 2 is not in this run"):
        received_maps(run, head=2)


def test_resampling_keeps_the_mean_and_is_by_area():
    values = np.random.default_rng(0).random((2, 4, 6))
    np.testing.assert_allclose(on_grid(values, 4, 6), values)
    halved = values.reshape(2, 2, 2, 3, 2).mean((2, 4))
    np.testing.assert_allclose(on_grid(values, 2, 3), halved)
    np.testing.assert_allclose(on_grid(values, 7, 5).mean((1, 2)), values.mean((1, 2)))
    np.testing.assert_allclose(on_grid(np.array([[1.0, 2.0, 6.0]]), 1, 2), [[4 / 3, 14 / 3]])


def sided(folder, side, samples=6, grid=GRID, seeds=None, noise=0.3):
    """A run whose pictures attend to one side of the grid, a little different in each."""

    def maps(step, branch, sample, layer):
        random = np.random.default_rng(100 * sample + 10 * step + (side == "right"))
        bright = np.ones(grid) + noise * random.random(grid)
        half = 2 * grid[1] // 5
        bright[:, :half] += 2.0 * (side == "left")
        bright[:, -half:] += 2.0 * (side == "right")
        return np.broadcast_to(heads.normal(bright.ravel()), (1, bright.size, bright.size))

    seeds = range(samples) if seeds is None else seeds
    return with_maps(folder, maps, grid=grid, samples=samples, seeds=seeds)


def test_sides_that_differ_are_found_where_they_differ(tmp_path):
    left, right = (sided(tmp_path / side, side) for side in ("left", "right"))
    found = map_difference(left, right)
    assert found.attrs["design"] == "paired by seed" and found.attrs["samples"] == (6, 6)
    sure = (found["p_adjusted"] <= 0.05).values
    assert sure[:, :2].all() and sure[:, -2:].all()
    assert (found["difference"].values[:, :2] < 0).all()
    expected = received_maps(right).mean(["sample", "layer"]) - received_maps(left).mean(
        ["sample", "layer"]
    )
    np.testing.assert_allclose(found["difference"], expected, atol=1e-9)


def test_models_with_other_grids_meet_on_the_coarser_one(tmp_path):
    coarse = sided(tmp_path / "coarse", "left")
    fine = sided(tmp_path / "fine", "left", grid=(8, 10), seeds=range(50, 56))
    found = map_difference(coarse, fine)
    assert found["difference"].shape == GRID and found.attrs["design"] == "independent"
    assert float(abs(found["difference"]).max()) < 0.3
    assert (found["p_adjusted"] > 0.05).mean() > 0.7


def test_two_classes_of_one_run(tmp_path):
    run = with_maps(
        tmp_path / "classes",
        lambda step, branch, sample, layer: heads.normal(
            np.ones((1, 20, 20)) + (sample % 2) * np.eye(20)[7] + 0.01 * sample
        ),
        grid=GRID,
        samples=8,
        labels=["cat", "dog"] * 4,
    )
    found = map_difference(run, run, class_a="cat", class_b="dog")
    assert found.attrs["samples"] == (4, 4) and found.attrs["design"] == "independent"
    assert int(found["difference"].values.argmax()) == 7
    assert float(found["p_adjusted"].min()) == pytest.approx(2 / 70)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": (0.6, 0.9)}, "noise: nothing is recorded from 0.6 to 0.9; expected a range"),
        ({"depth": (0.2, 0.9)}, "depth: nothing is recorded from 0.2 to 0.9"),
        ({"class_a": "cat"}, "there is no class 'cat'"),
    ],
)
def test_ranges_without_anything_are_refused(tmp_path, options, words):
    run = sided(tmp_path / "run", "left", samples=1)
    with pytest.raises(BadRequest) as caught:
        map_difference(run, run, **options)
    assert words in str(caught.value)


def test_one_picture_says_nothing_of_chance(tmp_path):
    run = sided(tmp_path / "run", "left", samples=1)
    found = map_difference(run, run, noise=(0, 0.5))
    assert np.isnan(found["p"]).all() and (found["difference"] == 0).all()
    assert found.attrs["steps"] == (1, 1)
