"""The bundled sprites: one lossless RGBA sheet, checked against its digest before it is decoded.

`scripts/build-emoji-archive` writes the sheet. Tile `label * len(STYLES) + style`, in row-major
order, holds that sprite tightly cropped and centred; fully transparent pixels are black.

Shapes: h, w are pixels of a picture.
"""

from __future__ import annotations

import hashlib
import io
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ditscope.data.classes import CLASSES, STYLES
from ditscope.errors import BadDataset

TILE = 64
TILES_PER_ROW = 12
SHEET_SIZE = (TILES_PER_ROW * TILE, len(CLASSES) * len(STYLES) // TILES_PER_ROW * TILE)
SHEET_SHA256 = "785cd98c10424199607beacb98e66f5267b63b86a39b568f08de7530b2ba04fd"


def bundled_sheet() -> Traversable:
    """The sheet that comes with the package."""
    return resources.files("ditscope.data") / "emoji" / "sprites.png"


def read_sheet(source: Traversable, sha256: str = SHEET_SHA256) -> Image.Image:
    """The sheet as an RGBA image of `SHEET_SIZE`.

    Raises:
        BadDataset: the file cannot be read or is not, byte for byte, the one `sha256` names.
    """
    fix = "Reinstall ditscope, or rebuild the file with scripts/build-emoji-archive."
    try:
        content = source.read_bytes()
    except OSError as error:
        problem = f"the emoji archive cannot be read ({error.strerror})"
        raise BadDataset(problem, file=str(source), fix=fix) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise BadDataset(
            f"the emoji archive is damaged: {len(content)} bytes with sha256 {found}",
            file=str(source),
            expected=f"sha256 {sha256}",
            fix=fix,
        )
    return Image.open(io.BytesIO(content)).convert("RGBA")


@cache
def _premultiplied() -> tuple[Image.Image, ...]:
    """Every sprite without its margin, premultiplied, so that resizing mixes in no black."""
    sheet = read_sheet(bundled_sheet())
    sprites = []
    for tile in range(len(CLASSES) * len(STYLES)):
        row, column = divmod(tile, TILES_PER_ROW)
        left, top = column * TILE, row * TILE
        sprite = sheet.crop((left, top, left + TILE, top + TILE))
        sprites.append(sprite.crop(sprite.getchannel("A").getbbox()).convert("RGBa"))
    return tuple(sprites)


@cache
def sprite_at(label: int, style: int, extent: int) -> NDArray[np.uint8]:
    """One sprite whose longer side is `extent` pixels.

    Returns:
        (h, w, 4) read-only premultiplied RGBA: no colour value exceeds its alpha. Kept in memory
        once made, as a training asks for the same few sizes for hours.
    """
    sprite = _premultiplied()[label * len(STYLES) + style]
    scale = extent / max(sprite.size)
    width, height = (max(1, round(side * scale)) for side in sprite.size)
    resized = np.array(sprite.resize((width, height), Image.Resampling.LANCZOS))
    np.minimum(resized[..., :3], resized[..., 3:], out=resized[..., :3])  # Lanczos overshoots
    resized.flags.writeable = False
    return resized
