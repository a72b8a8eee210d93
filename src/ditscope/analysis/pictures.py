"""Pictures that attention is shown on: finished or as the network saw them, and what is on them."""

from __future__ import annotations

import numpy
import xarray

from ditscope.core.sites import TokenGrid
from ditscope.runs.reader import Run

LATENT_RANGE = 2.5
"""Latents of an autoencoder are shown from minus to plus this; they have unit variance."""


def finished_picture(run: Run, sample: int) -> tuple[xarray.DataArray, str]:
    """What a sample became, (y, x, channel) uint8, and what to call it.

    Where the run has no pictures (it is partial, or nothing could decode its latents) that is the
    cleanest latent there is, as `latent_picture` shows it.
    """
    if run.has_images:
        return run.images.isel(sample=sample).transpose("y", "x", "channel"), "the picture"
    last = run.steps[-1].index
    return latent_picture(run, sample, last), f"latent at step {last}"


def latent_picture(run: Run, sample: int, step: int) -> xarray.DataArray:
    """What the network saw of a sample at a step, (y, x, channel) uint8, values outside clipped.

    Latents that are pixels ("rgb") are shown as they are. Of an autoencoder's, the first three
    channels are shown as red, green and blue: false colours, enough to see where things are.
    """
    latent = run.latents.sel(step=step, sample=sample).transpose("y", "x", "channel")
    values = numpy.asarray(latent, dtype=float)
    top = 1.0 if run.manifest.model.codec.get("kind") == "rgb" else LATENT_RANGE
    values = numpy.nan_to_num(values[..., numpy.arange(3) % values.shape[-1]])
    pixels = ((values / top).clip(-1, 1) * 127.5 + 127.5).round().astype("uint8")
    return xarray.DataArray(pixels, dims=("y", "x", "channel"))


def object_patch(picture: xarray.DataArray, grid: TokenGrid) -> tuple[int, int]:
    """The patch in the middle of the picture's object, most likely, as (row, column).

    Of the patches of `object_mask` the one nearest to their centroid, the first in reading order if
    several are. For a blank picture that is the centre.

    Args:
        picture: (y, x, channel) of any size.
        grid: the patches that the picture is cut into.
    """
    rows, columns = numpy.nonzero(object_mask(picture, grid))
    off_centre = numpy.hypot(rows - rows.mean(), columns - columns.mean())
    best = int(numpy.argmin(numpy.round(off_centre, 6)))
    return int(rows[best]), int(columns[best])


def object_mask(picture: xarray.DataArray, grid: TokenGrid) -> numpy.ndarray:
    """The patches of the picture's object, most likely: boolean (grid height, grid width).

    The colour of a patch is its mean. It stands out by the distance of its colour to the nearest
    colour on the picture's border (so a sky above a meadow stands out nowhere), averaged over its
    3 x 3 neighbourhood. The object is taken to be the patches that stand out at least half as much
    as the most outstanding one. In a blank picture that is every patch.

    Args:
        picture: (y, x, channel) of any size.
        grid: the patches that the picture is cut into.
    """
    height, width = grid.height, grid.width
    colours = patch_colours(picture, grid)
    rim = numpy.ones((height, width), bool)
    rim[1:-1, 1:-1] = False
    apart = colours[:, :, None, :] - colours[rim]  # (height, width, patch of the rim, channel)
    padded = numpy.pad(numpy.sqrt((apart**2).sum(-1)).min(-1), 1, mode="edge")
    stands_out = numpy.lib.stride_tricks.sliding_window_view(padded, (3, 3)).mean((-1, -2))
    return stands_out >= 0.5 * stands_out.max()


def patch_colours(picture: xarray.DataArray, grid: TokenGrid) -> numpy.ndarray:
    """Mean colour of each patch, (grid height, grid width, channel), in the picture's own units.

    A picture smaller than the grid is repeated to its size first.
    """
    pixels = numpy.asarray(picture.transpose("y", "x", "channel"), dtype=float)
    for axis, count in enumerate((grid.height, grid.width)):
        size = max(pixels.shape[axis], count)
        pixels = pixels.take(numpy.arange(size) * pixels.shape[axis] // size, axis)
        starts = -(-numpy.arange(count) * size // count)
        sizes = numpy.diff(numpy.append(starts, size))
        shape = [1, 1, 1]
        shape[axis] = count
        pixels = numpy.add.reduceat(pixels, starts, axis) / sizes.reshape(shape)
    return pixels
