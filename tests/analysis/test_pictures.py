"""What pictures attention is shown on, and where their object is."""

import numpy as np
import pytest
import xarray

from ditscope.analysis.pictures import (
    finished_picture,
    latent_picture,
    object_patch,
    patch_colours,
)
from ditscope.core.sites import TokenGrid
from tests.analysis.recorded import GRID, picture, record

AXES = ("y", "x", "channel")


def labelled(pixels):
    return xarray.DataArray(pixels, dims=AXES)


def test_object_is_found_on_sky_and_meadow():
    grid = TokenGrid(height=GRID[0], width=GRID[1])
    assert object_patch(labelled(picture()), grid) == (3, 4)


def test_a_small_object_off_centre_is_found():
    image = np.full((32, 32, 3), 200, np.uint8)
    image[20:28, 4:12] = (10, 60, 10)
    assert object_patch(labelled(image), TokenGrid(height=8, width=8)) in {(5, 1), (5, 2)}


@pytest.mark.parametrize(
    ("grid", "centre"), [((5, 7), (2, 3)), ((4, 4), (1, 1)), ((1, 1), (0, 0)), ((1, 6), (0, 2))]
)
def test_a_blank_picture_gives_its_centre(grid, centre):
    image = labelled(np.full((20, 28, 3), 77, np.uint8))
    assert object_patch(image, TokenGrid(height=grid[0], width=grid[1])) == centre


def test_patch_colours_are_means():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    found = patch_colours(labelled(image), TokenGrid(height=3, width=5))
    expected = image.reshape(3, 4, 5, 4, 3).mean((1, 3))
    np.testing.assert_allclose(found, expected)


def test_patch_colours_where_pixels_and_patches_do_not_divide():
    image = labelled(np.arange(7, dtype=float).reshape(1, 7, 1))
    found = patch_colours(image, TokenGrid(height=1, width=3))
    np.testing.assert_allclose(found[0, :, 0], [1.0, 3.5, 5.5])  # pixels 0-2, 3-4, 5-6
    fewer = patch_colours(image, TokenGrid(height=2, width=14))
    np.testing.assert_allclose(fewer[1, :, 0], np.repeat(np.arange(7), 2))


def test_latents_that_are_pixels_are_shown_as_they_are(run):
    shown = latent_picture(run, sample=1, step=3)
    assert shown.dims == AXES
    latent = run.latents.sel(step=3, sample=1).transpose(*AXES).values
    expected = np.round(np.clip(latent, -1, 1).astype(float) * 127.5 + 127.5)
    np.testing.assert_array_equal(shown.values, expected)


def test_latents_of_an_autoencoder_are_shown_in_false_colours(tmp_path):
    run = record(tmp_path / "run", codec="latent", layers=1, steps=3, whole=2)
    shown, name = finished_picture(run, 0)
    assert (shown.shape, shown.dtype, name) == ((24, 32, 3), np.uint8, "latent at step 1")
    channel = run.latents.sel(step=1, sample=0, channel=1).values
    expected = np.round(np.clip(channel.astype(float) / 2.5, -1, 1) * 127.5 + 127.5)
    np.testing.assert_array_equal(shown.values[..., 1], expected)


def test_a_complete_run_shows_its_picture_and_a_partial_one_its_last_latent(run, tmp_path):
    shown, name = finished_picture(run, 1)
    assert name == "the picture"
    np.testing.assert_array_equal(shown.values, picture(sample=1))
    partial = record(tmp_path / "run", whole=2)
    shown, name = finished_picture(partial, 1)
    assert name == "latent at step 1"
    np.testing.assert_array_equal(shown.values, latent_picture(partial, 1, 1).values)
