"""Where attention happens: the grid of image tokens and the ordered list of attention calls."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class TokenGrid(BaseModel):
    """Which tokens of a sequence are image patches, and on which (frames, height, width) grid.

    Tokens `start .. start + count - 1` are patches in row-major order, frame after frame. On the
    grid of a video a frame is as far from the next as a patch is from its neighbour.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: PositiveInt
    width: PositiveInt
    start: int = Field(default=0, ge=0)
    frames: PositiveInt = 1

    @property
    def count(self) -> int:
        """Number of image tokens."""
        return self.frames * self.height * self.width

    @property
    def diagonal(self) -> float:
        """The largest distance between two patches, in patches."""
        return math.hypot(self.frames - 1, self.height - 1, self.width - 1)

    def token(self, y: int, x: int) -> int:
        """Index in the sequence of the patch in grid row `y`, column `x` (IndexError outside)."""
        if not (0 <= y < self.height and 0 <= x < self.width):
            raise IndexError(f"patch ({y}, {x}) is outside a grid of {self.height} x {self.width}")
        return self.start + y * self.width + x


class TokenSegment(BaseModel):
    """Tokens `start .. start + count - 1` of a sequence, which are no image patches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["text", "class", "register"]
    start: int = Field(ge=0)
    count: PositiveInt


class Site(BaseModel):
    """One attention call within one forward, named by the module path that made it.

    `index` is its position in call order. `grid` is None where the tokens are not known to be
    image patches; distances are undefined there. `segments` are what is known of the other keys.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(ge=0)
    name: str
    heads: PositiveInt
    queries: PositiveInt
    keys: PositiveInt
    head_width: PositiveInt
    grid: TokenGrid | None = None
    segments: tuple[TokenSegment, ...] = ()
