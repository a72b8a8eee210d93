"""The five figures: they draw the run's own numbers, say what they show, and no words collide."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

import ditscope.plot as plot
from ditscope.analysis.atlas import head_atlas
from ditscope.analysis.maps import map_at, maps_by_layer, maps_by_step
from ditscope.analysis.pictures import latent_picture
from ditscope.errors import BadRequest
from ditscope.plot.marks import outline_region
from tests.analysis.recorded import picture, record
from tests.plot import drawn

FIGURES = [plot.head_map, plot.layers, plot.timesteps, plot.overlay, plot.heads]
MAPS = FIGURES[:-1]


class Altered:
    """A run whose attention maps pass through `change(map, step)` first."""

    def __init__(self, run, change):
        self._run, self._change = run, change

    def __getattr__(self, name):
        return getattr(self._run, name)

    def attention(self, *, step, **where):
        found = self._run.attention(step=step, **where).copy()
        found[:] = self._change(found.values, step)
        return found


def test_head_map_draws_the_map_beside_the_picture(run):
    figure = plot.head_map(run, layer=2, head=1, step=3, query=(1, 6), sample=1)
    (shown,) = drawn.images(figure)
    np.testing.assert_array_equal(
        shown, map_at(run, layer=2, head=1, step=3, query=(1, 6), sample=1).weights[0]
    )
    np.testing.assert_array_equal(drawn.pictures(figure)[0], picture(sample=1))
    assert drawn.outlined(figure) == [(1, 6), (1, 6)]
    assert drawn.titles(figure) == [
        "the picture, cut into patches",
        "its attention, patch by patch",
    ]
    words = drawn.words(figure)
    assert "Layer 2 of 0-2 · head 1 of 0-2 · step 3 of 0-3 (noise 0.25)" in words
    assert 'asked for "class 1"' in words
    assert "run.attention(layer=2, head=1, step=3, query=(1, 6), sample=1" in words
    assert "chosen by rule" not in words


def test_layers_are_side_by_side_on_one_scale(run):
    figure = plot.layers(run)
    panels = maps_by_layer(run)
    np.testing.assert_array_equal(drawn.images(figure), panels.weights)
    assert drawn.titles(figure) == ["the picture", "layer 0", "layer 1", "layer 2"]
    assert set(drawn.norms(figure)) == {(0.0, float(panels.weights.max()))}
    assert drawn.outlined(figure) == [panels.query] * 4
    words = drawn.words(figure)
    assert "one colour scale for all panels" in words
    assert "Mean of 3 heads" in words
    assert "Patch chosen by rule" in words


def test_timesteps_are_below_what_the_network_saw(run):
    figure = plot.timesteps(run)
    panels = maps_by_step(run)
    np.testing.assert_array_equal(drawn.images(figure), panels.weights)
    for i, shown in enumerate(drawn.pictures(figure)):
        np.testing.assert_array_equal(shown, latent_picture(run, 0, i))
    assert drawn.titles(figure) == [
        f"step {step}, noise {noise}" for step, noise in enumerate(["1.00", "0.75", "0.50", "0.25"])
    ]
    assert set(drawn.norms(figure)) == {(0.0, float(panels.weights.max()))}


@pytest.mark.parametrize("draw", [plot.layers, plot.timesteps])
def test_panels_can_have_a_scale_each_and_the_figure_says_so(run, draw):
    figure = draw(run, scale="panel")
    tops = [float(values.max()) for values in drawn.images(figure)]
    assert drawn.norms(figure) == [(0.0, pytest.approx(top)) for top in tops]
    assert len(set(tops)) > 1
    words = drawn.words(figure)
    assert "its own for each panel" in words
    assert "one colour scale" not in words


def test_overlay_covers_a_grey_picture_and_counts_half_of_the_attention(run):
    figure = plot.overlay(run, layer=2, head=1, step=3, query=(3, 4))
    grey, plain = drawn.pictures(figure)
    assert (np.ptp(grey, axis=-1) == 0).all()
    np.testing.assert_array_equal(plain, picture())
    (shown,) = drawn.images(figure)
    mass = np.sort(shown.ravel())[::-1].cumsum() / shown.sum()
    half = int(np.argmax(mass >= 0.5))
    (alpha,) = [image.get_alpha() for image in figure.axes[0].images if image.get_array().ndim == 2]
    assert np.argsort(alpha.ravel()).tolist() == np.argsort(shown.ravel()).tolist()
    words = drawn.words(figure).replace("\n", " ")
    assert f"{mass[half]:.0%} of its attention goes to {half + 1} of 48 patches" in words.replace(
        " %", "%"
    )
    assert drawn.outlined(figure) == [(3, 4), (3, 4)]


def test_the_white_line_runs_along_the_edges_of_the_region():
    region = np.array([[True, True, False], [False, True, False]])
    axes = Figure().add_axes((0, 0, 1, 1))
    outline_region(axes, region)
    drawn_edges = {
        tuple(sorted(map(tuple, segment.tolist())))
        for segment in axes.collections[-1].get_segments()
    }
    corners = {
        (y, x): [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
        for y, x in np.argwhere(region).tolist()
    }
    sides = [
        tuple(sorted((square[i], square[(i + 1) % 4])))
        for square in corners.values()
        for i in range(4)
    ]
    assert drawn_edges == {side for side in sides if sides.count(side) == 1}


@pytest.mark.parametrize("grid", [(2, 8), (6, 4)])
def test_pictures_keep_their_true_aspect(tmp_path, grid):
    run = record(tmp_path / "run", grid=grid, layers=1, steps=2, samples=1)
    for draw in MAPS:
        figure = draw(run)
        for axes in figure.axes:
            if axes.images and axes.images[0].get_array().shape[:2] in {
                grid,
                (grid[0] * 4, grid[1] * 4),
            }:
                box = axes.get_window_extent()
                assert box.width / box.height == pytest.approx(grid[1] / grid[0], rel=0.03)
                assert axes.get_xlim() == (-0.5, grid[1] - 0.5)
                assert axes.get_ylim() == (grid[0] - 0.5, -0.5)


def test_heads_writes_every_value_and_frames_the_extremes(run):
    figure = plot.heads(run)
    atlas = head_atlas(run)
    table, means = drawn.images(figure)[:2]
    np.testing.assert_allclose(table, atlas.values / np.log(48))
    np.testing.assert_allclose(means[:, 0], (atlas.values / np.log(48)).mean("head"))
    assert set(drawn.norms(figure)[:2]) == {(0.0, 1.0)}
    words = drawn.words(figure)
    for value in atlas.values.values.ravel():
        assert f"{value:.2f}" in words.split("\n")
    (low, high) = atlas.extremes
    assert (
        f"Framed, lowest: layer {low[0]} head {low[1]}, {atlas.values.values[low]:.2f} nats"
        in words
    )
    assert f"Framed, highest: layer {high[0]} head {high[1]}" in words
    assert "100 % = 3.87 nats\nlooks at all patches alike" in words
    assert "mean over 4 steps · mean over 2 pictures, conditional branch" in words


def test_heads_of_other_statistics_are_coloured_up_to_their_greatest(run):
    atlas = head_atlas(run, "received_max", step=1, sample=0)
    figure = plot.heads(run, metric="received_max", step=1, sample=0)
    assert drawn.norms(figure)[0] == (0.0, pytest.approx(float(atlas.values.max())))
    words = drawn.words(figure)
    assert f"{100 * float(atlas.values.max()):.1f} %\none favourite patch" in words
    assert 'step 1 of 0-3 (noise 0.75) · asked for "class 0"' in words.replace("\n", " ")
    assert "patches\nlooks far away" in drawn.words(plot.heads(run, metric="rms_distance"))


def test_missing_statistics_are_hatched(run, monkeypatch):
    atlas = head_atlas(run)
    holed = replace(atlas, values=atlas.values.where(atlas.values.layer > 0))
    monkeypatch.setattr("ditscope.plot.head_atlas.head_atlas", lambda *_, **__: holed)
    figure = plot.heads(run)
    assert drawn.hatched(figure) == 2
    assert "Hatched: no data." in drawn.words(figure)


def test_missing_numbers_are_hatched_and_never_coloured(run):
    def spoil(values, step):
        return np.where(np.arange(8) < 3, np.nan, values) if step == 1 else values * np.nan

    figure = plot.timesteps(Altered(run, spoil), steps=[1, 2])
    first, second = drawn.images(figure)
    assert np.isnan(first[:, :3]).all()
    assert np.isfinite(first[:, 3:]).all()
    assert np.isnan(second).all()
    assert drawn.hatched(figure) == 2
    assert {"hatched: no data", "no data"} <= set(drawn.words(figure).split("\n"))
    assert "There is no data here." in drawn.words(plot.overlay(Altered(run, spoil), step=2))


@pytest.mark.parametrize("value", [0.0, 1 / 48])
def test_a_constant_map_is_called_constant(run, value):
    flat = Altered(run, lambda values, step: np.full_like(values, value))
    share = "0 %" if value == 0 else "2.1 %"
    for draw in MAPS:
        figure = draw(flat)
        assert "constant" in drawn.words(figure)
        assert drawn.hatched(figure) == 0
        ((low, high),) = set(drawn.norms(figure))
        assert low <= value < high
    assert f"constant, {share} on every patch" in drawn.words(plot.layers(flat))
    assert "constant: the same on every" in drawn.words(plot.overlay(flat)).replace("\n", " ")


def test_one_patch_one_layer_one_head_one_step(tmp_path):
    run = record(tmp_path / "run", grid=(1, 1), layers=1, heads=1, steps=1, samples=1)
    for draw in FIGURES:
        figure = draw(run)
        assert drawn.collisions(figure) == []
    assert "The only layer · the only head · the only step" in drawn.words(plot.head_map(run))


def test_a_partial_run_is_drawn_over_its_last_latent(tmp_path):
    run = record(tmp_path / "run", layers=2, whole=3)
    for draw in FIGURES:
        draw(run)
    assert "latent at step 2, cut into patches" in drawn.titles(plot.head_map(run))


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_words_neither_touch_nor_leave_the_figure(run, draw):
    assert drawn.collisions(draw(run)) == []
    long = draw(run, title="A title with many words " * 9)
    assert drawn.collisions(long) == []
    assert "A title with many words" in drawn.words(long)


@pytest.mark.parametrize("scale", ["shared", "panel"])
def test_long_rows_of_panels_wrap(tmp_path, scale):
    run = record(tmp_path / "run", grid=(4, 3), layers=9, heads=2, steps=7, samples=1)
    for figure, panels in (
        (plot.layers(run, layers=range(9), scale=scale), 9),
        (plot.timesteps(run, steps=range(7), scale=scale), 7),
    ):
        assert drawn.collisions(figure) == []
        assert figure.get_size_inches()[0] == 10
        assert len(drawn.images(figure)) == panels


def test_collisions_are_seen():
    """The layout test can fail: words on words, and words outside, are reported."""
    figure = Figure(figsize=(4, 4))
    figure.text(0.1, 0.5, "one line of words")
    figure.text(0.12, 0.5, "another")
    figure.text(0.9, 0.9, "leaves the figure")
    assert drawn.collisions(figure) == ["leaves the figure", ("one line of words", "another")]


@pytest.mark.parametrize(
    ("draw", "arguments", "words"),
    [
        (plot.head_map, {"layer": 3}, "layer: 3 is not in this run; expected an integer from 0"),
        (plot.overlay, {"query": (9, 9)}, "expected (row, column) with row 0 to 5, column 0 to 7"),
        (plot.layers, {"layers": [7]}, "layer: 7 is not in this run"),
        (
            plot.layers,
            {"scale": "log"},
            "scale: 'log' is not a way to scale colours; expected \"sh",
        ),
        (plot.timesteps, {"steps": [4]}, "step: 4 is not in this run"),
        (plot.heads, {"metric": "gini"}, "metric: 'gini' is not in this run; expected one of ent"),
    ],
)
def test_bad_requests_name_the_field_and_the_range(run, draw, arguments, words):
    with pytest.raises(BadRequest) as caught:
        draw(run, **arguments)
    assert words in str(caught.value)


def test_no_window_and_no_global_figure(run):
    for draw in FIGURES:
        assert isinstance(draw(run), Figure)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
