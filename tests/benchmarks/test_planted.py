"""Planted faults are what they say and leave nothing; the score asks for the right place."""

import numpy as np
import pytest
import torch

import ditscope as ds
from benchmarks.faults import is_located
from benchmarks.planted import Planted, faults
from ditscope.analysis.diagnose.finding import Finding, Threshold
from ditscope.pipeline import load
from ditscope.sampling.job import make_job
from tests.sampling.conftest import write_pipeline

KINDS = {kind.name: kind for kind in faults({})}
TIMES = [900.0, 600.0, 300.0, 50.0]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return load(
        write_pipeline(tmp_path_factory.mktemp("planted") / "model", "flow"), dtype="float32"
    )


def attended(pipe, time):
    """What a forward at one time puts out, and what its heads did."""
    torch.manual_seed(1)
    x, t = torch.randn(2, *pipe.latent_shape), torch.full((2,), time)
    with torch.no_grad(), ds.watch(pipe.model, metrics=["entropy", "output_norm"]) as seen:
        out = pipe.model(x, t, torch.tensor([1, 3]))
    return out, {name: seen.stats[name].values[0] for name in seen.stats}  # (sample, site, head)


def planted(pipe, name, seed=0):
    job = make_job(pipe, [1], {"steps": 4})
    return KINDS[name].draw(np.random.default_rng(seed), job)


@pytest.mark.parametrize("name", KINDS)
def test_the_network_is_as_before_when_the_fault_is_gone(pipe, name):
    kept = {key: value.clone() for key, value in pipe.model.state_dict().items()}
    before, _ = attended(pipe, 50.0)
    with planted(pipe, name).plant(pipe.model, TIMES):
        during, _ = attended(pipe, 50.0)
    after, _ = attended(pipe, 50.0)
    assert torch.equal(before, after) and not torch.equal(before, during)
    assert all(torch.equal(value, kept[key]) for key, value in pipe.model.state_dict().items())


@pytest.mark.parametrize("name", ["temperature x3", "heads zeroed", "heads uniform"])
def test_it_acts_where_and_when_it_says(pipe, name):
    for seed in range(4):
        where = planted(pipe, name, seed)
        first = where.layers[0]
        for step, time in enumerate(TIMES):
            _, before = attended(pipe, time)
            with where.plant(pipe.model, TIMES):
                _, after = attended(pipe, time)
            changed = (before["entropy"] != after["entropy"]) | (
                before["output_norm"] != after["output_norm"]
            )
            acts = where.steps[0] <= step <= where.steps[1]
            assert not changed[:, :first].any()  # what comes before a layer knows nothing of it
            heads = list(where.heads) if where.heads else [0, 1]
            assert changed[:, first, heads].all() == acts
            if name == "heads zeroed" and acts:
                assert (after["output_norm"][:, first, heads] == 0).all()
            if name == "heads uniform" and acts:
                np.testing.assert_allclose(after["entropy"][:, first, heads], np.log(24), rtol=1e-6)


def found(**place):
    threshold = Threshold("at least", 1, "", "")
    return Finding("temperature", "error", "", 2.0, threshold, "", "", "", **place)


@pytest.mark.parametrize(
    ("place", "right"),
    [
        ({"layer": 2, "steps": (4, 9)}, True),
        ({"layer": 2, "steps": (7, 9)}, True),  # half of the steps
        ({"layer": 2, "steps": (8, 9)}, False),
        ({"layer": 1, "steps": (4, 9)}, False),
        ({"layer": None, "steps": (4, 9)}, False),
    ],
)
def test_a_finding_is_located_if_layer_and_steps_are_right(place, right):
    where = Planted("", None, layers=(2, 5), steps=(4, 9))
    assert is_located(found(**place), where) == right


def test_heads_must_be_those_and_no_others():
    where = Planted("", None, layers=(2,), heads=(0, 3))
    assert is_located(found(layer=2, heads=(0, 3)), where)
    assert not is_located(found(layer=2, heads=(0,)), where)
    whole = Planted("", None, whole=True)
    assert is_located(found(), whole) and not is_located(found(layer=2), whole)
