"""Any combination of layers, heads, steps, branches, samples and tokens, against whole maps."""

import itertools

import numpy as np
import pytest
import xarray

from ditscope.core.sites import Site, TokenGrid
from ditscope.errors import BadRequest
from ditscope.runs import attention_rows
from ditscope.runs.reader import open_run
from tests.runs.toy import BOTH, COND, Toy, manifest_of

STEPS = (0, 1, 2)


@pytest.fixture(scope="module")
def toy():
    return Toy(manifest_of(steps=3, samples=2, layers=2, heads=3, grid=(4, 6), qk_steps=STEPS))


@pytest.fixture(scope="module")
def run(tmp_path_factory, toy):
    return open_run(toy.write(tmp_path_factory.mktemp("all") / "run"))


@pytest.fixture(scope="module")
def maps(toy):
    """Every map in float64: (step, branch, sample, layer, head, query, key)."""
    of = lambda *place: toy.probabilities(place[0], place[3], place[1], place[2])
    found = [of(*place) for place in itertools.product(STEPS, BOTH, (0, 1), (0, 1))]
    return np.reshape(found, (3, 2, 2, 2, 3, 24, 24))


AXES = ("step", "branch", "sample", "layer", "head")
SIZES = (3, 2, 2, 2, 3)


def asked_ways(axis, size):
    one = BOTH[1] if axis == "branch" else size - 1
    some = [BOTH[1], BOTH[0]] if axis == "branch" else [size - 1, 0]
    return (one, some, "all", "mean")


def expected_of(maps, ways):
    for number, (size, way) in enumerate(zip(SIZES, ways, strict=True)):
        places = {0: [size - 1], 1: [size - 1, 0]}.get(way, range(size))
        maps = maps.take(places, axis=number)
        if way == 3:
            maps = maps.mean(axis=number, keepdims=True)
    axes = tuple(number for number, way in enumerate(ways) if way in (0, 3))
    return maps.squeeze(axes)


@pytest.mark.parametrize("ways", [*itertools.product(range(4), repeat=5)][::23])
def test_any_combination(run, maps, ways):
    place = {
        axis: asked_ways(axis, size)[way] for axis, size, way in zip(AXES, SIZES, ways, strict=True)
    }
    wanted = expected_of(maps, ways)
    found = run.attention(**place, query=(2, 5))
    stay = [axis for axis, way in zip(AXES, ways, strict=True) if way in (1, 2)]
    assert found.dims == (*stay, "y", "x") and found.dtype == np.float32
    np.testing.assert_allclose(found.values, wanted[..., 17, :].reshape(found.shape), atol=2e-6)
    back = run.attention(**place, received=(2, 5))
    np.testing.assert_allclose(back.values, wanted[..., :, 17].reshape(found.shape), atol=2e-6)
    for axis, way in zip(AXES, ways, strict=True):
        if way == 1:
            last = ["uncond", "cond"] if axis == "branch" else [SIZES[AXES.index(axis)] - 1, 0]
            assert found[axis].values.tolist() == last
        elif way in (0, 3):
            assert found.attrs[axis] == place[axis]
    assert found.attrs["source"] == "stored" and found.attrs["row_sum_error"] < 1e-5


MASK = np.zeros((4, 6), bool)
MASK[1, 2:5] = MASK[3, 0] = True
FINE = np.random.default_rng(0).uniform(size=(8, 12)) * np.kron(MASK, np.ones((2, 2)))
BOX = np.zeros((4, 6))
BOX[1:3, 0:4] = 1


@pytest.mark.parametrize(
    ("asked", "weights"),
    [
        ((1, 0, 3, 4), BOX),
        (MASK, MASK),
        (xarray.DataArray(MASK, dims=("y", "x")), MASK),
        (FINE, FINE.reshape(4, 2, 6, 2).mean(axis=(1, 3))),
        ("mean", np.ones((4, 6))),
    ],
    ids=["box", "mask", "labelled", "pixels", "all"],
)
def test_several_queries_and_keys(run, maps, asked, weights, monkeypatch):
    monkeypatch.setattr(attention_rows, "BLOCK_ELEMENTS", 200)  # several blocks
    weights = weights.astype(float).ravel()
    found = run.attention(layer="mean", head="all", step=1, query=asked)
    wanted = np.einsum("lhqk,q->hk", maps[1, 0, 0], weights / weights.sum()) / 2
    np.testing.assert_allclose(found.values.reshape(3, 24), wanted, atol=2e-6)
    if isinstance(asked, str):
        return
    back = run.attention(layer="mean", head="all", step=1, received=asked)
    wanted = np.einsum("lhqk,k->hq", maps[1, 0, 0], weights) / 2
    np.testing.assert_allclose(back.values.reshape(3, 24), wanted, atol=2e-6)


def test_labels_of_what_stays(run):
    found = run.attention(["blocks.1.attn", 0], slice(0, 2), "all", (0, 0), sample=range(2))
    assert found.site.values.tolist() == ["blocks.1.attn", "blocks.0.attn"]
    assert found.noise_level.dims == ("step",) and found.label.dims == ("sample",)
    assert found["head"].values.tolist() == [0, 1] and found.attrs["query"] == (0, 0)
    masked = run.attention(0, 0, 0, MASK)
    assert masked.attrs["query"] == "a mask of 4 places"


def test_all_steps_are_those_that_evaluated_the_branch(tmp_path):
    manifest = manifest_of(branches=lambda step: BOTH if step == 1 else COND, qk_steps=STEPS)
    run = open_run(Toy(manifest).write(tmp_path / "run"))
    assert run.attention(0, 0, "all", 0, branch="uncond")["step"].values.tolist() == [1]
    assert run.attention(0, 0, "all", 0, branch="all").shape == (1, 2, 2, 3)
    assert run.attention(0, 0, "all", 0).sizes["step"] == 3
    with pytest.raises(BadRequest, match="uncond was not evaluated at step 2; expected cond"):
        run.attention(0, 0, [1, 2], 0, branch="uncond")


def test_what_lies_outside_the_grid(tmp_path):
    manifest = manifest_of(layers=1)
    place = {"index": 0, "name": "a", "heads": 2, "queries": 7, "keys": 7, "head_width": 4}
    site = Site(**place, grid=TokenGrid(height=2, width=3, start=1))
    toy = Toy(manifest.model_copy(update={"sites": (site,)}))
    run = open_run(toy.write(tmp_path / "run"))
    found = run.attention(0, "all", 1, (0, 0, 2, 3))
    wanted = toy.probabilities(1, 0, "cond", 0)[:, 1:].mean(axis=1)
    np.testing.assert_allclose(found.values.reshape(2, 6), wanted[:, 1:], atol=2e-6)
    assert found.outside_grid.dims == ("head",)
    np.testing.assert_allclose(found.outside_grid, wanted[:, 0], atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, "query, received: neither or both are given"),
        ({"received": 0}, "query, received: neither or both are given"),
        ({"head": []}, "head: no head is left"),
        ({"head": [0, 3]}, "head 3; expected an index from 0 to 2"),
        ({"layer": [0, "blocks.7.attn"]}, "0 sites are called 'blocks.7.attn'"),
        ({"step": slice(5, 9)}, "no step is left"),
        ({"branch": ["cond", "both"]}, "both was not evaluated; expected cond, uncond"),
        ({"branch": []}, "no branch is left"),
        ({"query": (0, 0, 5, 1)}, r"box \(0, 0, 5, 1\); expected \(top, left, bottom, right\)"),
        ({"query": (1, 1, 1, 2)}, "box"),
        ({"query": (0, 0, 1.5, 1)}, "box"),
        ({"query": np.zeros((4, 6))}, "a mask that is empty"),
        ({"query": np.full((4, 6), np.nan)}, "a mask that is empty, negative or not finite"),
        ({"query": -MASK.astype(int)}, "negative"),
        ({"query": np.ones((5, 6))}, "a mask of 5 x 6; expected 4 x 6 patches, or a multiple"),
        ({"query": np.full((4, 6), "x")}, "a mask that is no numbers"),
        ({"query": "all"}, "query all; expected an index from 0 to 23"),
        ({"query": None, "received": "mean"}, "key mean; expected an index from 0 to 23"),
    ],
)
def test_bad_requests_name_what_there_is(run, change, message):
    place = {"layer": 0, "head": 0, "step": 1, "query": (0, 0), **change}
    with pytest.raises(BadRequest, match=message):
        run.attention(**place)


def test_layers_of_several_shapes(tmp_path):
    sites = manifest_of().sites
    sites = (sites[0], sites[1].model_copy(update={"heads": 3}))
    manifest = manifest_of(qk_steps=()).model_copy(update={"sites": sites})
    run = open_run(Toy(manifest).write(tmp_path / "run"))
    with pytest.raises(BadRequest, match="layers of 2 shapes; expected layers of one shape"):
        run.attention("mean", 0, 0, 0)
