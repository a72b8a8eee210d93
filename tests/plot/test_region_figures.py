"""Figures of parts, regions and received attention: their numbers, and no words collide."""

import numpy as np
import pytest

import ditscope.plot as plot
import ditscope.plot.parts_panel as parts_panel
from ditscope.analysis.continuity import continuity_along, continuity_between
from ditscope.analysis.map_difference import map_difference
from ditscope.analysis.maps import usual_layers
from ditscope.analysis.mass_flow import mass_flow
from ditscope.analysis.parts import find_parts
from ditscope.analysis.received import received_maps
from ditscope.analysis.rollout import rollout
from ditscope.analysis.symmetry import symmetry
from ditscope.errors import BadRequest
from ditscope.plot.marks import percent
from tests.analysis.recorded import OBJECT, record
from tests.plot import drawn

BOXES = (0, 0, 2, 2), (4, 5, 6, 8)
FIGURES = {
    "continuity": lambda run: plot.continuity(run, continuity_between(run, *BOXES)),
    "flow": lambda run: plot.flow(run, {"thing": (2, 3, 5, 6), "a sky of a long name": BOXES[0]}),
    "map_differences": lambda run: plot.map_differences(map_difference(run, run)),
    "matrix": plot.matrix,
    "parts": plot.parts,
    "received": plot.received,
    "relevance": lambda run: plot.relevance(run, query=(3, 4)),
    "symmetry": plot.symmetry,
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_words_collide(run, name):
    assert drawn.collisions(FIGURES[name](run)) == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_small_run_has_them_too(tmp_path, name):
    run = record(tmp_path / "run", steps=1, samples=1, layers=1, heads=2)
    assert drawn.words(FIGURES[name](run))


@pytest.mark.parametrize("name", FIGURES)
def test_without_stored_maps_they_say_what_to_record(tmp_path, name):
    run = record(tmp_path / "run", steps=1, samples=1, layers=1, heads=2, qk_steps=())
    if name == "matrix":
        pytest.skip("one map is replayed")
    with pytest.raises(BadRequest, match="--qk-steps"):
        FIGURES[name](run)


def test_parts_are_those_that_were_found(run):
    figure = plot.parts(run)
    found = [find_parts(run, sample) for sample in range(2)]
    np.testing.assert_array_equal(drawn.images(figure)[1::2], [each["score"] for each in found])
    words = drawn.words(figure)
    inside = found[0]["object"].values
    assert inside[OBJECT].all() and inside.sum() == 9
    assert f"object: {100 * inside.mean():.0f} %" in words and "2 parts" in words


def test_the_background_has_one_colour_in_all_pictures(run, monkeypatch):
    found = [find_parts(run, sample) for sample in range(2)]
    turned = found[1].assign(part=1 - found[1]["part"])  # as if its object were the larger part
    answers = iter([found[0], turned])
    monkeypatch.setattr(parts_panel, "find_parts", lambda *_run, **_options: next(answers))
    colours = [array for array in drawn.images(plot.parts(run)) if array.ndim == 3]
    assert len(colours) == 2
    np.testing.assert_array_equal(*colours)


def test_pictures_that_are_left_out_are_counted(tmp_path):
    run = record(tmp_path / "run", steps=1, samples=7, layers=1, heads=2)
    assert "6 of 7 pictures" in drawn.words(plot.parts(run))


def test_a_dark_matrix_says_how_little(run):
    shown = drawn.images(figure := plot.matrix(run, layer=2, head=0, step=3))[0]
    words = f"half of all cells are above {percent(float(np.median(shown)))}"
    assert words in drawn.words(figure).replace("\n", " ")


def test_received_attention_is_in_even_shares(run):
    shown = drawn.images(plot.received(run, sample=1))
    expected = received_maps(run, layers=usual_layers(run), samples=[1])[0]
    np.testing.assert_allclose(shown, expected)
    assert np.allclose([values.mean() for values in shown], 1, atol=1e-5)


def test_relevance_ends_at_the_input(run):
    figure = plot.relevance(run, step=2)
    found = rollout(run, step=2)
    assert drawn.titles(figure) == ["the picture", "before layer 2", "before layer 1", "input"]
    np.testing.assert_allclose(drawn.images(figure)[-1], found["relevance"] * 48)


def test_symmetry_shows_both_measures_of_every_head(run):
    figure = plot.symmetry(run, sample=1)
    heads = symmetry(run).sel(sample=1).mean("step")
    balance, mirrored = drawn.images(figure)[1:3]
    np.testing.assert_allclose(balance, heads["balance"].transpose("layer", "head"))
    np.testing.assert_allclose(mirrored, heads["mirrored"].transpose("layer", "head"))
    assert "a patch of the left side receives" in drawn.words(figure)  # the sink is at its corner


def test_flow_has_a_line_for_each_pair(run):
    figure = plot.flow(run, {"thing": (2, 3, 5, 6)})
    lift = mass_flow(run, {"thing": (2, 3, 5, 6)})["lift"].sel(sample=0).mean(["layer", "head"])
    panel = figure.axes[[axes.get_title("left") for axes in figure.axes].index("rest looks at")]
    lines = [line.get_ydata() for line in panel.lines if len(line.get_xdata()) == 4]
    np.testing.assert_allclose(lines, lift.sel(source="rest").transpose("target", "step"))


def test_map_differences_mark_what_is_beyond_chance(tmp_path):
    run = record(tmp_path / "run", samples=6, layers=1, steps=1)
    found = map_difference(run, run)
    found["p_adjusted"][2, 3] = 0.01
    figure = plot.map_differences(found, names=("before", "after"))
    shown = drawn.images(figure)
    np.testing.assert_allclose(shown[2], found["difference"])
    (dots,) = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == ([3], [2])
    assert "after less before" in drawn.words(figure)


def test_the_weakest_link_is_ringed(run):
    found = continuity_along(run, [(0, 0), (0, 7), (5, 7)])
    figure = plot.continuity(run, found)
    weakest = found.isel(link=found.attrs["weakest"])
    ring = next(line for line in figure.axes[0].lines)
    assert ring.get_xdata()[0] == (float(weakest["x0"]) + float(weakest["x1"])) / 2
    assert f"beside patch ({int(weakest['y0'])}, {int(weakest['x0'])})" in drawn.words(figure)


def test_a_matrix_has_a_row_for_every_patch(run):
    figure = plot.matrix(run, layer=1, head=1, step=2)
    (shown,) = drawn.images(figure)
    np.testing.assert_allclose(shown, run.maps(1, 2, range(48))[1], rtol=1e-5)
