"""Measures of maps, each against its definition written out patch by patch in float64."""

import numpy as np
import pytest
import xarray

from ditscope.analysis import map_measures as module
from ditscope.analysis.claims import usual_claims
from ditscope.analysis.head_kinds import head_kinds
from ditscope.analysis.map_measures import map_measures, measures
from ditscope.analysis.pictures import object_mask
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest
from ditscope.runs.reader import open_run
from tests.analysis import heads
from tests.analysis.constructed import with_maps
from tests.analysis.recorded import picture

GRID = (4, 5)


def mask_of(grid=GRID):
    mask = np.zeros(grid, bool)
    mask[1:3, 1:3] = True
    return mask


def measured(*maps, grid=GRID, mask=None):
    queries = np.arange(grid[0] * grid[1])
    mask = mask_of(grid) if mask is None else mask
    return measures(np.stack(maps), queries, TokenGrid(height=grid[0], width=grid[1]), mask)


def by_definition(weights, grid, mask):
    """The same numbers from loops over patches."""
    h, w = grid
    maps = weights.reshape(h, w, h, w)
    patches = [(y, x) for y in range(h) for x in range(w)]
    totals = dict.fromkeys(("self", "near", "row", "column", "others"), 0.0)
    kernel = {}
    for a in patches:
        for b in patches:
            p, apart = maps[a][b], (b[0] - a[0], b[1] - a[1])
            kernel.setdefault(apart, []).append(p)
            totals["self"] += p * (a == b)
            totals["near"] += p * (apart[0] ** 2 + apart[1] ** 2 <= 1.5**2)
            totals["row"] += p * (a != b) * (apart[0] == 0)
            totals["column"] += p * (a != b) * (apart[1] == 0)
            totals["others"] += p * (a != b)
    means = {apart: np.mean(ps) for apart, ps in kernel.items()}
    often = {d: m for d, m in means.items() if len(kernel[d]) >= len(patches) / 4}
    favourite = max(often, key=often.get)
    position, same = [], {True: [], False: []}
    texture = []
    for a in patches:
        expected = np.array([[means[y - a[0], x - a[1]] for x in range(w)] for y in range(h)])
        expected /= expected.sum()
        position.append(np.minimum(maps[a], expected).sum())
        same[bool(mask[a])].append((maps[a] - expected)[mask == mask[a]].sum())
        power = np.abs(np.fft.fft2(maps[a])) ** 2
        power[0, 0] = 0
        high = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)) > 0.25
        texture.append(power[high].sum() / power.sum() if power.sum() > 1e-12 else 0)
    return {
        "self": totals["self"] / len(patches),
        "near": totals["near"] / len(patches),
        "row": totals["row"] / totals["others"],
        "column": totals["column"] / totals["others"],
        "offset": often[favourite],
        "offset_y": favourite[0],
        "offset_x": favourite[1],
        "position": np.mean(position),
        "gain": (np.mean(same[True]) + np.mean(same[False])) / 2,
        "texture": np.mean(texture),
    }


@pytest.mark.parametrize("grid", [(4, 5), (3, 7), (6, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_measure_is_its_definition(grid, seed):
    random = np.random.default_rng(seed)
    count = grid[0] * grid[1]
    weights = heads.normal(np.exp(2 * random.normal(size=(count, count))))
    mask = random.random(grid) < 0.4
    found = measured(weights, heads.far(grid, seed), grid=grid, mask=mask)
    for head, maps in enumerate((weights, heads.far(grid, seed))):
        expected = by_definition(maps, grid, mask)
        assert {name: found[name][head] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_even_attention():
    found = measured(heads.even(GRID))
    assert found["self"][0] == pytest.approx(1 / 20)
    assert found["row"][0] == pytest.approx(4 / 19) and found["column"][0] == pytest.approx(3 / 19)
    assert found["position"][0] == pytest.approx(1)
    assert found["gain"][0] == pytest.approx(0) and found["texture"][0] == 0


def test_a_patch_that_looks_at_itself_has_no_row():
    found = measured(np.eye(20))
    assert (found["self"][0], found["near"][0], found["offset"][0]) == (1, 1, 1)
    assert (found["row"][0], found["column"][0]) == (0, 0)
    assert (found["offset_y"][0], found["offset_x"][0]) == (0, 0)


def test_a_fixed_displacement_is_found_with_its_direction():
    found = measured(heads.diagonal(GRID, (-1, 2)))
    assert found["offset"][0] > 0.9
    assert (found["offset_y"][0], found["offset_x"][0]) == (-1, 2)


def test_what_position_explains_is_no_gain():
    found = measured(heads.local(GRID), heads.semantic(GRID, mask_of()))
    assert found["position"][0] > 0.98 and abs(found["gain"][0]) < 0.01
    assert found["position"][1] < 0.8 and found["gain"][1] > 0.2


@pytest.mark.parametrize("fill", [True, False])
def test_without_an_edge_there_is_no_gain(fill):
    assert np.isnan(measured(heads.local(GRID), mask=np.full(GRID, fill))["gain"]).all()


def test_one_patch():
    found = measured(np.ones((1, 1)), grid=(1, 1), mask=np.ones((1, 1), bool))
    assert found["self"][0] == 1 and found["texture"][0] == 0


def test_of_a_run_they_are_those_of_its_maps(tmp_path):
    shown = xarray.DataArray(picture(), dims=("y", "x", "channel"))
    mask = object_mask(shown, TokenGrid(height=6, width=8))

    def weights(step, branch, sample, layer):
        kinds = [heads.semantic((6, 8), mask), heads.local((6, 8), 0.5 + 0.5 * step)]
        kinds.append(heads.far((6, 8), seed=10 * (branch == "cond") + sample))
        return np.stack(kinds)

    run = with_maps(
        tmp_path / "run",
        weights,
        grid=(6, 8),
        steps=3,
        samples=2,
        layers=2,
        qk_steps=(0, 2),
        picture=lambda sample: picture(sample=sample),
    )
    found = map_measures(run)
    assert found["row"].dims == ("step", "branch", "sample", "layer", "head")
    assert found["step"].values.tolist() == [0, 2]
    direct = measured(*weights(2, "cond", 1, 0), grid=(6, 8), mask=mask)
    here = found.sel(step=2, branch="cond", sample=1, layer=1)
    for name, values in direct.items():
        np.testing.assert_allclose(here[name], values, atol=1e-4, err_msg=name)
    assert np.isnan(found["kept"].sel(step=0)).all()
    narrow, wide = heads.local((6, 8), 0.5), heads.local((6, 8), 1.5)
    kept = [1, np.minimum(narrow, wide).sum(-1).mean(), 1]
    np.testing.assert_allclose(here["kept"], kept, atol=1e-4)
    both = np.minimum(heads.far((6, 8), 11), heads.far((6, 8), 1)).sum(-1).mean()
    np.testing.assert_allclose(here["branch_overlap"], [1, 1, both], atol=1e-4)
    assert found.sel(layer=[0]).identical(map_measures(run, layers=[0]))


def test_many_patches_are_drawn_from(tmp_path, monkeypatch):
    run = with_maps(tmp_path / "run", lambda *place: heads.local((6, 8))[None], grid=(6, 8))
    every = map_measures(run)
    monkeypatch.setattr(module, "MAX_QUERIES", 24)
    some = map_measures(run)
    np.testing.assert_allclose(some["near"], every["near"], atol=0.05)
    assert not some["near"].equals(every["near"])


def test_one_branch_and_one_stored_step_leave_nothing_to_compare(tmp_path):
    run = with_maps(
        tmp_path / "run",
        lambda *place: heads.row(GRID)[None],
        steps=1,
        branches=lambda step: ("cond",),
    )
    found = map_measures(run)
    assert np.isnan(found["kept"]).all() and np.isnan(found["branch_overlap"]).all()
    assert (found["row"] > 0.9).all()


def test_without_stored_maps_it_says_what_to_record(tmp_path):
    run = with_maps(tmp_path / "run", lambda *place: heads.row(GRID)[None], qk_steps=())
    with pytest.raises(BadRequest, match="--qk-steps 5"):
        map_measures(run)


def test_the_maps_of_a_run_are_measured_once(tmp_path, monkeypatch):
    weights = np.stack([heads.local((6, 8)), heads.far((6, 8), 1)])
    run = with_maps(tmp_path / "run", lambda *place: weights, grid=(6, 8), steps=3)
    first = map_measures(run)
    kinds, claims = head_kinds(run), usual_claims(run)

    def read_again(*_place):
        raise AssertionError("the maps were read again")

    monkeypatch.setattr(module, "patch_maps", read_again)
    assert head_kinds(run).identical(kinds) and usual_claims(run).identical(claims)
    again = map_measures(run)
    assert again.identical(first)
    again["near"][:] = 0  # a caller's copy is the caller's
    assert map_measures(run).identical(first)
    monkeypatch.undo()
    assert map_measures(open_run(run.path)).identical(first)  # another look, the same bits
