"""Flow of attention between regions, against sums over patches."""

import numpy as np
import pytest

from ditscope.analysis import stored_maps as stored
from ditscope.analysis.mass_flow import mass_flow
from tests.analysis import heads
from tests.analysis.constructed import with_maps

GRID = (4, 5)
REGIONS = {"top": (0, 0, 2, 5), "corner": (0, 3, 3, 5)}


def weights(step, branch, sample, layer):
    return np.stack([heads.far(GRID, seed=step + 10 * sample), heads.even(GRID)])


@pytest.mark.parametrize("rows", [1000, 3])
def test_mass_and_lift_are_their_definitions(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(stored, "MAX_NUMBERS", rows * 2 * 20)
    run = with_maps(tmp_path / "run", weights, grid=GRID, steps=2, samples=2, layers=2)
    found = mass_flow(run, REGIONS)
    assert found["mass"].dims == ("step", "sample", "layer", "head", "source", "target")
    masks = {name: np.zeros(GRID, bool) for name in REGIONS}
    for name, (top, left, bottom, right) in REGIONS.items():
        masks[name][top:bottom, left:right] = True
    masks["rest"] = ~(masks["top"] | masks["corner"])
    maps = heads.far(GRID, seed=11)
    here = found.sel(step=1, sample=1, layer=1)
    for source, asks in masks.items():
        for target, gives in masks.items():
            one = {"source": source, "target": target}
            expected = np.mean([maps[i][gives.ravel()].sum() for i in np.flatnonzero(asks)])
            assert float(here["mass"].sel(head=0, **one)) == pytest.approx(expected, abs=1e-5)
            assert float(here["lift"].sel(head=1, **one)) == pytest.approx(1, abs=1e-5)


def test_of_regions_that_do_not_overlap_the_mass_is_one(tmp_path):
    run = with_maps(tmp_path / "run", weights, grid=GRID, branches=lambda step: ("cond",))
    found = mass_flow(run, {"a": (0, 0, 2, 2), "b": (2, 2, 4, 5)}, steps=[1])
    np.testing.assert_allclose(found["mass"].sum("target"), 1, atol=1e-5)
    assert found["step"].values.tolist() == [1]
