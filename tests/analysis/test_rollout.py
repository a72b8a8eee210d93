"""Rollout: against the product of whole matrices, and what it must be in simple cases."""

import numpy as np
import pytest

from ditscope.analysis import rollout as module
from ditscope.analysis.rollout import class_relevance, rollout
from ditscope.core.sites import TokenSegment
from ditscope.errors import BadRequest
from tests.analysis import heads
from tests.analysis.constructed import with_maps

GRID = (4, 5)


def weights(step, branch, sample, layer):
    return np.stack([heads.far(GRID, seed=layer + 7 * step), heads.local(GRID, 1 + layer)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollout") / "run"
    return with_maps(folder, weights, grid=GRID, layers=3, steps=4, qk_steps=(0, 3))


def whole(step, residual=0.5, layers=range(3)):
    """The product of all matrices, the last layer leftmost."""
    product = np.eye(20)
    for layer in layers:
        mean = weights(step, "cond", 0, layer).mean(0)
        product = (residual * np.eye(20) + (1 - residual) * mean) @ product
    return product


@pytest.mark.parametrize("block", [2**22, 60])
@pytest.mark.parametrize("residual", [0.5, 0.2, 0])
def test_a_row_is_that_of_the_product(run, monkeypatch, residual, block):
    monkeypatch.setattr(module, "BLOCK", block)
    found = rollout(run, query=(1, 3), step=3, residual=residual)
    expected = whole(3, residual)[8]
    np.testing.assert_allclose(found["relevance"].values.ravel(), expected, atol=1e-6)
    assert float(found["token_relevance"].sum()) == pytest.approx(1, abs=1e-6)
    assert found.attrs["outside"] == pytest.approx(0, abs=1e-9)
    upper = whole(3, residual, layers=(1, 2))[8]
    np.testing.assert_allclose(found["from_layer"].sel(layer=1).values.ravel(), upper, atol=1e-6)


def test_of_the_picture_it_is_the_mean_over_patches(run):
    found = rollout(run, step=0)
    np.testing.assert_allclose(found["relevance"].values.ravel(), whole(0).mean(0), atol=1e-6)
    part = rollout(run, step=0, layers=[2, 0])
    expected = whole(0, layers=(0, 2)).mean(0)
    np.testing.assert_allclose(part["relevance"].values.ravel(), expected, atol=1e-6)


def test_patches_that_look_at_themselves_are_made_from_themselves(tmp_path):
    run = with_maps(tmp_path / "run", lambda *place: np.eye(20)[None], grid=GRID, layers=3)
    found = rollout(run, query=(2, 2))
    assert float(found["relevance"][2, 2]) == pytest.approx(1, abs=1e-6)


def test_without_a_step_a_stored_one_is_taken(run):
    assert rollout(run).attrs["step"] == 3


def with_class_token(run):
    """The same run, its last five tokens being no patches: the class and four of text."""
    grid = run.manifest.sites[0].grid.model_copy(update={"height": 3})
    segments = (
        TokenSegment(kind="class", start=15, count=1),
        TokenSegment(kind="text", start=16, count=4),
    )
    sites = tuple(
        site.model_copy(update={"grid": grid, "segments": segments}) for site in run.manifest.sites
    )

    class Joint:
        manifest = run.manifest.model_copy(update={"sites": sites})

        def __getattr__(self, name):
            return getattr(run, name)

    return Joint()


def test_what_comes_from_the_class_is_told_where_it_is_a_token(run):
    joint, expected = with_class_token(run), whole(3)
    found = rollout(joint, step=3)
    picture = expected[:15].mean(0)
    np.testing.assert_allclose(found["relevance"].values.ravel(), picture[:15], atol=1e-6)
    assert found.attrs["outside"] == pytest.approx(picture[15:].sum(), abs=1e-6)
    assert class_relevance(joint, step=3) == pytest.approx(picture[15], abs=1e-6)
    assert class_relevance(joint, kind="text", query=(0, 1)) == pytest.approx(
        expected[1, 16:].sum(), abs=1e-6
    )


def test_where_the_class_is_no_token_it_says_how_it_acts(run):
    with pytest.raises(BadRequest, match="no class tokens; its condition acts outside"):
        class_relevance(run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": 1}, "step: no Q and K are stored of step 1; expected one of [0, 3]"),
        ({"residual": 1}, "residual: 1; expected a share from 0 to below 1"),
        ({"residual": float("nan")}, "residual: nan"),
        ({"query": (4, 0)}, "query: (4, 0) is not a patch"),
        ({"layers": [3]}, "layer: 3 is not in this run"),
        ({"sample": 2}, "sample: 2 is not in this run"),
    ],
)
def test_what_cannot_be_followed(run, options, words):
    with pytest.raises(BadRequest) as caught:
        rollout(run, **options)
    assert words in str(caught.value)


def test_layers_with_other_tokens_are_not_chained(run):
    sites = list(run.manifest.sites)
    sites[1] = sites[1].model_copy(update={"keys": 7})

    class Crossed:
        manifest = run.manifest.model_copy(update={"sites": tuple(sites)})

        def __getattr__(self, name):
            return getattr(run, name)

    with pytest.raises(BadRequest, match="cannot be chained"):
        rollout(Crossed())
    assert rollout(Crossed(), layers=[0, 2], step=0)["layer"].values.tolist() == [0, 2]
