"""The grid of finished pictures, and the gallery of a run."""

import numpy as np
import pytest

import ditscope.plot as plot
from ditscope.errors import BadRequest
from ditscope.plot.gallery import save_gallery
from tests.analysis.recorded import record
from tests.plot import drawn


def test_every_picture_is_above_its_name():
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    names = [f"class {i}" for i in range(7)] + ["a name of several words that takes two lines"]
    figure = plot.image_grid(images, names)
    np.testing.assert_array_equal(drawn.pictures(figure), images)
    assert {"class 0", "class 6"} <= set(drawn.words(figure).split("\n"))
    assert drawn.collisions(figure) == []
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert len({round(box.x0) for box in boxes}) == 4
    assert len({round(box.y0) for box in boxes}) == 2
    for box in boxes:  # a whole number of dots for each pixel
        assert box.width / 16 == pytest.approx(round(box.width / 16), abs=0.01)


def test_a_heading_is_drawn_if_given():
    figure = plot.image_grid(np.zeros((1, 8, 8, 3), np.uint8), ["black"], title="One picture")
    assert "One picture" in drawn.words(figure)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), [], "images: the shape is (0, 8, 8, 3)"),
        (np.zeros((8, 8, 3), np.uint8), ["a"], "images: the shape is (8, 8, 3); expected (sample"),
        (np.zeros((1, 8, 8, 3)), ["a"], "images: the type is float64; expected uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), ["a"], "labels: 1 labels for 2 pictures"),
    ],
)
def test_bad_requests_say_what_is_expected(images, labels, words):
    with pytest.raises(BadRequest) as caught:
        plot.image_grid(images, labels)
    assert words in str(caught.value)


def test_the_gallery_holds_every_figure_that_the_run_can_give(run, tmp_path):
    saved = save_gallery(run, tmp_path)
    assert len(saved) == 6
    assert all(path.stat().st_size > 5000 and meaning for path, meaning in saved)
    assert sorted(path for path, _ in saved) == sorted(tmp_path.iterdir())


def test_the_gallery_of_a_run_without_statistics_is_its_pictures(tmp_path):
    run = record(tmp_path / "run", layers=1, steps=2, kept=False)
    (tmp_path / "figures").mkdir()
    assert [path.name for path, _ in save_gallery(run, tmp_path / "figures")] == ["grid.png"]
