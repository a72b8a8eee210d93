"""Films: a frame for each step on one scale, in formats that can be read back."""

import sys

import numpy as np
import pytest
from PIL import Image

import ditscope.plot as plot
from ditscope.analysis.maps import maps_by_step
from ditscope.errors import BadRequest, ResourceError
from tests.analysis.recorded import record
from tests.plot import drawn


def test_every_stored_step_is_a_frame_on_one_scale(run):
    frames = list(plot.film(run, layer=2, head=1))
    panels = maps_by_step(run, [0, 1, 2, 3], layer=2, head=1)
    assert len(frames) == 4
    for frame, values in zip(frames, panels.weights.values, strict=True):
        np.testing.assert_allclose(drawn.images(frame)[0], values)
        assert drawn.norms(frame)[0] == (0, pytest.approx(float(panels.weights.max())))
        assert drawn.collisions(frame) == []
    assert "step 3, noise 0.25" in drawn.words(frames[-1])


@pytest.mark.parametrize("kind", ["gif", "webp", "apng"])
def test_what_is_written_can_be_read(run, tmp_path, kind):
    target = plot.save_film(plot.film(run, steps=[0, 3]), tmp_path / f"f.{kind}", rate=4, dpi=40)
    with Image.open(target) as image:
        assert image.n_frames == 2
        image.seek(1)
        image.load()
        assert round(image.info["duration"]) == 250
        second = np.asarray(image.convert("RGB"), float)
        image.seek(0)
        assert np.abs(second - np.asarray(image.convert("RGB"), float)).max() > 20


def test_video_without_its_package_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio", None)
    monkeypatch.setitem(sys.modules, "imageio.v3", None)
    with pytest.raises(ResourceError, match=r"pip install 'imageio\[ffmpeg\]'"):
        plot.save_film(plot.film(run, steps=[0]), tmp_path / "f.mp4", dpi=40)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "rate", "words"),
    [("f.avi", 6, ".gif, .webp"), ("f.gif", 100, "0.5 to 60"), ("f.gif", float("nan"), "0.5 to")],
)
def test_formats_and_rates_that_are_none(run, tmp_path, name, rate, words):
    with pytest.raises(BadRequest, match=words):
        plot.save_film(plot.film(run), tmp_path / name, rate=rate)


def test_no_frames_are_no_film(tmp_path):
    with pytest.raises(BadRequest, match="no pictures"):
        plot.save_film(iter(()), tmp_path / "f.gif")


def test_one_step_is_a_film_of_one_frame(tmp_path):
    run = record(tmp_path / "run", steps=1, samples=1, layers=1)
    target = plot.save_film(plot.film(run), tmp_path / "f.gif", dpi=40)
    with Image.open(target) as image:
        assert image.n_frames == 1
