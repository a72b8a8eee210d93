"""Figures of statistics: they draw the numbers of the analysis and say what they are."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

import ditscope as ds
from ditscope.analysis.head_kinds import KINDS, OTHER, head_kinds
from ditscope.analysis.layers import layer_profile
from ditscope.analysis.steps import step_curves
from ditscope.errors import BadRequest
from ditscope.plot.kind_atlas import KIND_COLOURS
from tests.analysis.constructed import with_maps, with_statistics
from tests.analysis.recorded import record
from tests.analysis.test_compare import noisy, pair, plant
from tests.analysis.test_head_kinds import BUILT, GRID, built
from tests.analysis.test_phases import curve, run_of
from tests.plot import drawn

OF_RUNS = [ds.plot.steps, ds.plot.phases, ds.plot.depth, ds.plot.kinds]


@pytest.fixture(scope="module")
def bent(tmp_path_factory):
    """A run with two phases; the second begins at step 12."""
    return run_of(tmp_path_factory.mktemp("bent") / "run", curve(30, (12,)), noise=0.01)


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 2]


def test_steps_draws_the_curves_and_their_bands(bent):
    figure = ds.plot.steps(bent)
    curves = step_curves(bent)
    assert len(figure.axes) == 2
    for i, axes in enumerate(figure.axes):
        (line,) = lines(axes)
        np.testing.assert_array_equal(line.get_ydata(), curves["mean"][i])
        (band,) = [part for part in axes.collections if isinstance(part, PolyCollection)]
        drawn_ends = band.get_paths()[0].vertices[:, 1]
        assert drawn_ends.min() == pytest.approx(float(curves["low"][i].min()))
        assert drawn_ends.max() == pytest.approx(float(curves["high"][i].max()))
        breaks = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
        assert breaks == [pytest.approx(11.5, abs=1)]
    words = drawn.words(figure)
    assert "phase 1" in words and "phase 2" in words and "entropy\n(nats)" in words
    assert "step, and its noise level" in words and "\n0\n1.00" in words
    assert "Line: mean over 4 pictures, conditional branch. Band: 95 % interval" in words


def test_phases_draws_every_layer_and_step(bent):
    figure = ds.plot.phases(bent, metric="entropy")
    shown = drawn.images(figure)[0]
    expected = bent.stats["entropy"].sel(branch="cond").astype(float).mean(["sample", "head"])
    np.testing.assert_allclose(shown, expected.transpose("layer", "step"), rtol=1e-6)
    assert "entropy (nats)" in drawn.words(figure)
    assert "2 phases, over all statistics and layers" in drawn.words(figure)


def test_depth_draws_profiles_ranges_of_heads_and_trends(tmp_path):
    values = np.ones((2, 1, 4, 6, 3)) + 0.2 * np.arange(6)[:, None] + 0.05 * np.arange(3)
    values += 0.01 * np.random.default_rng(0).normal(size=values.shape)
    run = with_statistics(tmp_path / "run", {"entropy": values})
    figure = ds.plot.depth(run, layers=[1, 2, 4, 5])
    profile = layer_profile(run, layers=[1, 2, 4, 5])
    (axes,) = figure.axes
    np.testing.assert_array_equal(lines(axes)[0].get_ydata(), profile["mean"][0])
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_y() for bar in bars] == pytest.approx(profile["head_least"][0].values.tolist())
    tops = [bar.get_y() + bar.get_height() for bar in bars]
    assert tops == pytest.approx(profile["head_most"][0].values.tolist())
    words = drawn.words(figure)
    assert "rises with depth: rank correlation +1.00 (+1.00 to +1.00 over pictures)" in words
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "5"]


def test_kinds_writes_and_colours_every_head(tmp_path):
    run = with_maps(tmp_path / "run", built, grid=GRID)
    called = head_kinds(run)["called"].values
    figure = ds.plot.kinds(run)
    table = figure.axes[0]
    assert len(table.patches) == called.size == len(BUILT)
    texts = [text.get_text() for text in table.texts]
    assert texts[:3] == ["de", "si", "di"]  # cells are too narrow for names
    words = drawn.words(figure)
    assert "dead, 1 head" in words and "looks at" not in words
    assert set(KIND_COLOURS) == {*(kind.name for kind in KINDS), OTHER}


def test_kinds_says_what_cannot_be_told(tmp_path):
    run = with_maps(tmp_path / "run", built, grid=GRID, qk_steps=())
    words = drawn.words(ds.plot.kinds(run)).replace("\n", " ")
    assert "Not told: diagonal, row, column, semantic, branch-insensitive. Record them:" in words


def test_differences_draws_every_place_and_dots_what_is_beyond_chance(tmp_path):
    found = ds.compare(*pair(tmp_path, change=plant))
    figure = ds.plot.differences(found, names=("old", "new"))
    shown = drawn.images(figure)
    noisiest = found["difference"].sel(metric="entropy", noise=0.875)
    np.testing.assert_array_equal(shown[0], noisiest)
    low, high = drawn.norms(figure)[0]
    largest = float(abs(found["difference"].sel(metric="entropy")).max())
    assert (low, high) == (pytest.approx(-largest), pytest.approx(largest))
    dots = [axes.lines[0].get_xydata().tolist() for axes in figure.axes if axes.lines]
    assert [dot for dot in dots if dot] == [[[2.0, 1.0]], [[2.0, 1.0]]]
    words = drawn.words(figure).replace("\n", " ")
    assert "new less old" in words and "Dots: beyond chance, 2 of 48" in words


def test_differences_of_single_pictures_and_of_other_sizes(tmp_path):
    a = with_statistics(tmp_path / "a", noisy(1, 0, layers=5, heads=2))
    b = with_statistics(tmp_path / "b", noisy(1, 1, layers=3, heads=4), grid=(8, 8))
    figure = ds.plot.differences(ds.compare(a, b))
    assert drawn.collisions(figure) == []
    assert "One picture says nothing of chance" in drawn.words(figure)
    same = ds.plot.differences(ds.compare(a, a))
    assert (drawn.images(same)[0] == 0).all()


@pytest.mark.parametrize("draw", OF_RUNS, ids=lambda draw: draw.__name__)
def test_words_neither_touch_nor_leave_the_figure(run, bent, draw):
    for each in (run, bent):
        assert drawn.collisions(draw(each)) == []
    assert drawn.collisions(draw(run, title="A title with many words " * 9)) == []
    assert "unconditional branch" in drawn.words(draw(run, branch="uncond"))


def test_words_of_differences_neither_touch_nor_leave_the_figure(tmp_path):
    assert drawn.collisions(ds.plot.differences(ds.compare(*pair(tmp_path)))) == []


@pytest.mark.parametrize("draw", OF_RUNS, ids=lambda draw: draw.__name__)
def test_one_step_one_sample_one_head(tmp_path, draw):
    one = record(tmp_path / "one", grid=(1, 1), layers=1, heads=1, steps=1, samples=1)
    assert drawn.collisions(draw(one)) == []
    small = record(tmp_path / "small", grid=(2, 8), layers=2, heads=2, steps=2, samples=1)
    assert drawn.collisions(draw(small)) == []


@pytest.mark.parametrize("draw", OF_RUNS, ids=lambda draw: draw.__name__)
def test_many_layers_and_heads_fit(tmp_path, draw):
    values = {name: np.ones((3, 1, 1, 28, 16)) for name in ("entropy", "received_max")}
    assert drawn.collisions(draw(with_statistics(tmp_path / "run", values))) == []


def test_what_is_missing_is_refused_with_what_to_record(tmp_path):
    bare = record(tmp_path / "run", layers=1, steps=1, kept=False)
    for draw in OF_RUNS:
        with pytest.raises(BadRequest, match="--attention-debug"):
            draw(bare)


@pytest.fixture
def with_gaps(tmp_path):
    """`step_kl` has no value at the first step, `branch_kl` nowhere: the run has one branch."""
    entropy = 1 + np.random.default_rng(0).random((8, 1, 2, 3, 2))
    step_kl = entropy / 10
    step_kl[0] = np.nan
    statistics = {"entropy": entropy, "step_kl": step_kl, "branch_kl": np.nan * entropy}
    return with_statistics(tmp_path / "run", statistics)


@pytest.mark.parametrize(
    "draw",
    [
        lambda run: ds.plot.heads(run, metric="branch_kl"),
        lambda run: ds.plot.phases(run, metric="branch_kl"),
        lambda run: ds.plot.steps(run, metrics=["entropy", "branch_kl"]),
        lambda run: ds.plot.depth(run, metrics=["branch_kl"]),
        lambda run: ds.plot.heads(run, metric="step_kl", step=0),
        lambda run: ds.plot.depth(run, metrics=["step_kl"], step=0),
    ],
)
def test_a_statistic_without_a_value_is_no_empty_figure(with_gaps, draw):
    with pytest.raises(BadRequest, match=r"metric: (branch|step)_kl has no value here(?s:.*)first"):
        draw(with_gaps)


def test_statistics_without_a_value_are_left_out_of_all(with_gaps):
    assert [str(m) for m in step_curves(with_gaps)["metric"].values] == ["entropy", "step_kl"]
    assert len(ds.plot.steps(with_gaps).axes) == 2
    profile = layer_profile(with_gaps)
    assert [str(m) for m in profile["metric"].values] == ["entropy", "step_kl"]
    wanted = with_gaps.stats["step_kl"].isel(step=slice(1, None), branch=0).mean(["step", "head"])
    np.testing.assert_allclose(
        profile["mean"].sel(metric="step_kl"), wanted.mean("sample"), rtol=1e-6
    )
    assert list(profile["unit"].values) == ["nats", "nats"]
    assert "branch_kl" not in drawn.words(ds.plot.depth(with_gaps))
