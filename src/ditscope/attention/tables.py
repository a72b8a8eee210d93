"""Constants of a token grid on a device, made once.

Shapes: I patches of the grid, n some of them, G grid columns plus grid rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

from ditscope.core.sites import TokenGrid

P = ParamSpec("P")


def _remembered(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Keep what was made lately; inside a compiled graph, where that cannot be, make it anew."""
    kept = lru_cache(maxsize=32)(make)

    @wraps(make)
    def table(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return make(*args, **kwargs) if torch.compiler.is_compiling() else kept(*args, **kwargs)

    return table


def squared_distances(grid: TokenGrid, first: int, last: int, device: torch.device) -> Tensor:
    """From patches `first` .. `last - 1` to all patches: (n, I) float32."""
    return _squared_distances(grid.frames, grid.height, grid.width, first, last, device)


@_remembered
def _squared_distances(
    frames: int, height: int, width: int, first: int, last: int, device: torch.device
) -> Tensor:
    token = torch.arange(frames * height * width, device=device)
    t, y, x = token // (height * width), token // width % height, token % width
    square = torch.zeros((), device=device)
    for place in (y.float(), x.float(), t.float())[: 3 if frames > 1 else 2]:
        square = square + (place[first:last, None] - place).square_()
    return square


def distances(grid: TokenGrid, first: int, last: int, device: torch.device) -> Tensor:
    """As `squared_distances`, with the root taken."""
    return _distances(grid.frames, grid.height, grid.width, first, last, device)


@_remembered
def _distances(
    frames: int, height: int, width: int, first: int, last: int, device: torch.device
) -> Tensor:
    return _squared_distances(frames, height, width, first, last, device).sqrt()


def places(grid: TokenGrid, device: torch.device) -> Tensor:
    """Frame, grid row and grid column of each patch, from the middle of the grid: (I, 3)."""
    return _places(grid.frames, grid.height, grid.width, device)


@_remembered
def _places(frames: int, height: int, width: int, device: torch.device) -> Tensor:
    axes = [
        torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2
        for n in (frames, height, width)
    ]
    return torch.cartesian_prod(*axes)


def token_places(grid: TokenGrid, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places of the image tokens (3, I), of all tokens (3, N), NaN where they have none; float32.

    Frame, grid row and grid column, from the middle of the grid.
    """
    sides = (grid.frames, grid.height, grid.width)
    image = _places_of_image(*sides, device)
    if grid.count == tokens:
        return image, image
    return image, _places_of_all(*sides, grid.start, tokens, device)


@_remembered
def _places_of_image(frames: int, height: int, width: int, device: torch.device) -> Tensor:
    return _places(frames, height, width, device).float().mT.contiguous()


@_remembered
def _places_of_all(
    frames: int, height: int, width: int, start: int, tokens: int, device: torch.device
) -> Tensor:
    image = _places_of_image(frames, height, width, device)
    everyone = image.new_full((3, tokens), torch.nan)
    everyone[:, start : start + image.shape[1]] = image
    return everyone


@_remembered
def lines(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The grid column and then the grid row of each patch, as one-hot vectors: (I, G)."""
    token = torch.arange(height * width, device=device)
    columns, rows = F.one_hot(token % width, width), F.one_hot(token // width, height)
    return torch.cat([columns, rows], dim=-1).to(dtype)


@_remembered
def squared_distances_to_lines(height: int, width: int, device: torch.device) -> Tensor:
    """From each patch to each grid column and to each grid row: (I, G) float32."""
    token = torch.arange(height * width, device=device)[:, None]
    columns = token % width - torch.arange(width, device=device)
    rows = token // width - torch.arange(height, device=device)
    return torch.cat([columns, rows], dim=-1).float().square()
