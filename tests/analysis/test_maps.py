"""Panels of attention maps: which, and that they are the run's own numbers."""

import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ditscope.analysis.maps import (
    map_at,
    maps_by_layer,
    maps_by_step,
    most_attended,
    usual_layers,
    usual_steps,
)
from ditscope.errors import BadRequest
from tests.analysis.recorded import GRID, attention, picture, record


def test_one_map_is_the_attention_of_the_run(run):
    panels = map_at(run, layer=2, head=1, step=3, query=(2, 3))
    assert panels.weights.dims == ("panel", "y", "x")
    assert panels.weights.shape == (1, *GRID)
    expected = attention(2, 1, 3)[2 * 8 + 3].reshape(GRID)
    np.testing.assert_allclose(panels.weights[0], expected, atol=1e-6)
    assert panels.even_share == (1 / 48,)
    assert panels.noise_levels == (0.25,)
    np.testing.assert_array_equal(panels.picture, picture())


def test_layers_are_the_usual_ones_and_heads_averaged(tmp_path):
    run = record(tmp_path / "run", layers=11, heads=2, steps=2, samples=1)
    panels = maps_by_layer(run, query=(0, 0))
    assert [place.layer for place in panels.places] == [1, 3, 5, 7, 8, 9]
    assert {place.head for place in panels.places} == {"mean"}
    for i, place in enumerate(panels.places):
        rows = [attention(place.layer, head, place.step)[0] for head in range(2)]
        np.testing.assert_allclose(panels.weights[i].values.ravel(), np.mean(rows, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "usual"),
    [
        (28, [2, 8, 14, 18, 22, 24]),
        (12, [1, 3, 6, 7, 9, 10]),
        (8, [1, 2, 4, 5, 6, 7]),
        (6, [0, 1, 2, 3, 4, 5]),
        (1, [0]),
    ],
)
def test_usual_layers_are_at_the_same_relative_depths(run, layers, usual):
    site = run.manifest.sites[0]
    sites = tuple(site.model_copy(update={"index": i}) for i in range(layers))

    class Deeper:
        manifest = run.manifest.model_copy(update={"sites": sites})

    assert usual_layers(Deeper()) == usual


def test_usual_steps_are_those_nearest_to_the_usual_timesteps(tmp_path):
    run = record(tmp_path / "run", layers=1, steps=50, samples=1, qk_steps=())
    found = [run.steps[step].timestep for step in usual_steps(run, "cond")]
    assert found == pytest.approx([1000, 760, 500, 260, 20])
    process = {"kind": "flow", "time_scale": 1.0}
    model = run.manifest.model.model_copy(update={"process": process})

    class Scaled:
        manifest = run.manifest.model_copy(update={"model": model})
        steps = tuple(
            step.model_copy(update={"timestep": step.timestep / 1000}) for step in run.steps
        )

    assert usual_steps(Scaled(), "cond") == usual_steps(run, "cond")


def test_layers_can_be_chosen_and_share_one_patch(run):
    panels = maps_by_layer(run, [2, 0], head=0, step=1)
    assert [(place.layer, place.head) for place in panels.places] == [(2, 0), (0, 0)]
    assert {place.query for place in panels.places} == {panels.query} == {(3, 4)}
    assert panels.places[0].reasons == panels.places[1].reasons


def test_fewer_layers_than_panels_are_all_shown(run):
    assert [place.layer for place in maps_by_layer(run).places] == [0, 1, 2]


def test_steps_run_from_noise_to_picture(tmp_path):
    run = record(tmp_path / "run", layers=1, steps=9, samples=1)
    panels = maps_by_step(run, head=1)
    assert [place.step for place in panels.places] == [0, 2, 4, 7, 8]
    assert list(panels.noise_levels) == sorted(panels.noise_levels, reverse=True)
    assert panels.effective_patches[0] > panels.effective_patches[-1]
    assert [place.step for place in maps_by_step(run, [7, 1], head=1).places] == [1, 7]


def test_steps_that_are_named_show_the_head_of_the_default_step(run):
    usual = map_at(run)
    places = maps_by_step(run, [0, 1, 2, 3]).places
    assert {(p.layer, p.head, p.query) for p in places} == {
        (p.layer, p.head, p.query) for p in usual.places
    }


def test_steps_are_those_that_need_no_model_if_there_are_five(tmp_path):
    run = record(tmp_path / "run", layers=1, steps=8, samples=1, qk_steps=(1, 2, 4, 5, 7))
    assert [place.step for place in maps_by_step(run).places] == [1, 2, 4, 5, 7]


def test_steps_of_a_branch_are_those_that_evaluated_it(run):
    places = maps_by_step(run, branch="uncond").places
    assert [place.step for place in places] == [1, 2, 3]
    with pytest.raises(BadRequest, match="'uncond' was not evaluated at step 0"):
        maps_by_step(run, [0, 1], branch="uncond")


@pytest.mark.parametrize(
    ("build", "arguments", "words"),
    [
        (maps_by_layer, {"layers": [0, 3]}, "layer: 3 is not in this run; expected"),
        (maps_by_layer, {"layers": []}, "layers: [] names no panel"),
        (maps_by_layer, {"layers": 2}, "layers: 2 names no panel"),
        (maps_by_layer, {"layer": 2}, "layer: these maps differ in their layer; expected layers="),
        (maps_by_step, {"steps": [0, 9]}, "step: 9 is not in this run; expected"),
        (maps_by_step, {"steps": ()}, "steps: () names no panel"),
        (maps_by_step, {"step": 2}, "step: these maps differ in their step; expected steps="),
        (maps_by_step, {"branch": "both"}, "branch: 'both' was not evaluated"),
    ],
)
def test_bad_requests_name_the_field_and_the_range(run, build, arguments, words):
    with pytest.raises(BadRequest) as caught:
        build(run, **arguments)
    assert words in str(caught.value)


def test_layers_with_different_grids_do_not_share_a_figure(run):
    class Mixed:
        manifest = run.manifest.model_copy(
            update={
                "sites": tuple(
                    site.model_copy(
                        update={"grid": site.grid.model_copy(update={"width": 8 - site.index})}
                    )
                    for site in run.manifest.sites
                )
            }
        )

        def __getattr__(self, name):
            return getattr(run, name)

    with pytest.raises(BadRequest, match="different patch grids: 6 x 6, 6 x 7, 6 x 8"):
        maps_by_layer(Mixed(), query=(0, 0))


def test_effective_patches_of_known_maps(run):
    panels = map_at(run, layer=0, head=0)

    def spread(values):
        weights = xarray.DataArray(np.array(values, float)[None], dims=("panel", "y", "x"))
        return type(panels)(**{**vars(panels), "weights": weights}).effective_patches[0]

    assert spread([[0.25, 0.25], [0.25, 0.25]]) == pytest.approx(4)
    assert spread([[1.0, 0.0], [0.0, 0.0]]) == pytest.approx(1)
    assert spread([[0.1, 0.1], [0.0, np.nan]]) == pytest.approx(2)
    assert np.isnan(spread([[0.0, 0.0], [np.nan, 0.0]]))


shares = arrays.arrays(
    float, st.tuples(*[st.integers(1, 5)] * 2), elements=st.floats(0, 1, allow_subnormal=False)
)


@given(shares, st.sampled_from([0.1, 0.5, 0.9]))
def test_most_attended_is_the_smallest_set_with_that_share(values, share):
    kept = most_attended(xarray.DataArray(values, dims=("y", "x")), share).values
    if not values.any():
        assert not kept.any()
        return
    assert values[kept].sum() >= share * values.sum() * (1 - 1e-6)
    assert values[kept].sum() - values[kept].min() < share * values.sum() * (1 + 1e-6)
    assert values[kept].min() >= values[~kept].max(initial=0.0)


def test_most_attended_leaves_out_what_is_not_known():
    values = xarray.DataArray([[np.nan, 0.4], [0.1, 0.1]], dims=("y", "x"))
    assert most_attended(values).values.tolist() == [[False, True], [False, False]]
