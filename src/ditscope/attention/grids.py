"""Which tokens of a model are image patches, and on which grid: from what is known, never guessed.

A count of tokens does not tell a grid (16 tokens: 4 x 4 or 2 x 8?), so an unknown model has none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ditscope.core.sites import TokenGrid


@dataclass(frozen=True)
class GridRule:
    """The grid of the self-attention sites whose name matches `sites`."""

    sites: str  # glob
    grid: TokenGrid
    exact: bool = False  # the sequence holds patches and nothing else

    def fits(self, name: str, queries: int, keys: int) -> bool:
        """Whether the site `name` with that many tokens has this grid."""
        needed = self.grid.start + self.grid.count
        length_fits = queries == needed if self.exact else queries >= needed
        return fnmatchcase(name, self.sites) and queries == keys and length_fits


def supplied(grid: TokenGrid | Mapping[str, TokenGrid]) -> tuple[GridRule, ...]:
    """The rules of a grid for all self-attention sites, or of one grid per site glob."""
    named = {"*": grid} if isinstance(grid, TokenGrid) else grid
    return tuple(GridRule(sites, each) for sites, each in named.items())


def known(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[GridRule, ...]:
    """The rules of a model we know the token layout of, for one call of it; else none."""
    names = {kind.__name__ for kind in type(model).__mro__}
    for name, find in _BY_CLASS.items():
        if name in names:
            inputs = inspect.signature(model.forward).bind(*args, **kwargs).arguments
            return find(model, inputs)
    return _from_config(model) or _from_embedding(model)


Inputs = Mapping[str, Any]


def _patches(inputs: Inputs, model: nn.Module, start: int = 0) -> TokenGrid | None:
    """The patches of a latent (B, C, h, w): its true height and width, whatever the config says."""
    patch = model.config.patch_size  # type: ignore[union-attr]
    height, width = inputs["hidden_states"].shape[-2:]
    if height < patch or width < patch:
        return None
    return TokenGrid(height=height // patch, width=width // patch, start=start)


def _image_then_cross(model: nn.Module, inputs: Inputs) -> tuple[GridRule, ...]:
    """Of diffusers DiT and PixArt: attn1 is over patches, attn2 looks at the text."""
    grid = _patches(inputs, model)
    return (GridRule("*.attn1", grid, exact=True),) if grid else ()


def _image_before_text(model: nn.Module, inputs: Inputs) -> tuple[GridRule, ...]:
    """Of diffusers SD3: joint attention, patches first; attn2, if any, is patches alone."""
    grid = _patches(inputs, model)
    return (GridRule("*", grid),) if grid else ()


def _text_before_image(model: nn.Module, inputs: Inputs) -> tuple[GridRule, ...]:
    """Of diffusers FLUX: joint attention, text first; image tokens come with their positions."""
    ids: Tensor = inputs["img_ids"]
    height, width = (int(ids[..., axis].max()) + 1 for axis in (1, 2))
    if height * width != ids.shape[-2]:
        return ()
    text = inputs["encoder_hidden_states"].shape[1]
    return (GridRule("*", TokenGrid(height=height, width=width, start=text), exact=True),)


_BY_CLASS: dict[str, Callable[[nn.Module, Inputs], tuple[GridRule, ...]]] = {
    "DiTTransformer2DModel": _image_then_cross,
    "PixArtTransformer2DModel": _image_then_cross,
    "SD3Transformer2DModel": _image_before_text,
    "FluxTransformer2DModel": _text_before_image,
}


def _from_config(model: nn.Module) -> tuple[GridRule, ...]:
    """A `config.grid` of (rows, columns), as ours has: every token is a patch."""
    grid = getattr(getattr(model, "config", None), "grid", None)
    return _exactly(grid, start=0)


def _from_embedding(model: nn.Module) -> tuple[GridRule, ...]:
    """A patch embedding with a `grid_size`, as in timm and the published DiT code."""
    for name in ("patch_embed", "x_embedder"):
        grid = getattr(getattr(model, name, None), "grid_size", None)
        if rules := _exactly(grid, start=getattr(model, "num_prefix_tokens", 0)):
            return rules
    return ()


def _exactly(grid: object, start: int) -> tuple[GridRule, ...]:
    if not isinstance(grid, tuple) or len(grid) != 2:
        return ()
    height, width = (int(side) for side in grid)
    return (GridRule("*", TokenGrid(height=height, width=width, start=start), exact=True),)
