"""Which tokens of a model are image patches, and on which grid: from what is known, never guessed.

A count of tokens does not tell a grid (16 tokens: 4 x 4 or 2 x 8?), so an unknown model has none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn

from ditscope.core.sites import TokenGrid, TokenSegment

Kind = Literal["text", "class", "register"]


@dataclass(frozen=True)
class GridRule:
    """The grid of the self-attention sites whose name matches `sites`, and what is around it.

    Without a grid, the keys of sites of any length, which are all `after`.
    """

    sites: str  # glob
    grid: TokenGrid | None
    exact: bool = False  # the sequence ends with the patches
    before: tuple[tuple[Kind, int], ...] = ()  # how many tokens of each kind lie before the patches
    after: Kind | None = None  # what the tokens after the patches are

    def fits(self, name: str, queries: int, keys: int) -> bool:
        """Whether the site `name` with that many tokens has this grid."""
        if not fnmatchcase(name, self.sites):
            return False
        if self.grid is None:
            return True
        needed = self.grid.start + self.grid.count
        length_fits = queries == needed if self.exact else queries >= needed
        return queries == keys and length_fits

    def segments(self, keys: int) -> tuple[TokenSegment, ...]:
        """What is known of the tokens that are no patches, of a site that fits."""
        end = self.grid.start + self.grid.count if self.grid else 0
        spans: list[tuple[Kind, int, int]] = []
        start = 0
        for kind, count in self.before:
            spans.append((kind, start, count))
            start += count
        if self.after:
            spans.append((self.after, end, keys - end))
        return tuple(
            TokenSegment(kind=kind, start=start, count=count)
            for kind, start, count in spans
            if count > 0
        )


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
    cross = GridRule("*.attn2", None, after="text")
    return (GridRule("*.attn1", grid, exact=True), cross) if grid else ()


def _image_before_text(model: nn.Module, inputs: Inputs) -> tuple[GridRule, ...]:
    """Of diffusers SD3: joint attention, patches first; attn2, if any, is patches alone."""
    grid = _patches(inputs, model)
    return (GridRule("*", grid, after="text"),) if grid else ()


def _text_before_image(model: nn.Module, inputs: Inputs) -> tuple[GridRule, ...]:
    """Of diffusers FLUX: joint attention, text first; image tokens come with their positions."""
    ids: Tensor = inputs["img_ids"]
    height, width = (int(ids[..., axis].max()) + 1 for axis in (1, 2))
    if height * width != ids.shape[-2]:
        return ()
    text = inputs["encoder_hidden_states"].shape[1]
    grid = TokenGrid(height=height, width=width, start=text)
    return (GridRule("*", grid, exact=True, before=(("text", text),)),)


def _video_then_cross(model: nn.Module, inputs: Inputs) -> tuple[GridRule, ...]:
    """Of diffusers Wan: attn1 is over patches of all frames, attn2 looks at the text."""
    frames, height, width = (
        side // patch
        for side, patch in zip(
            inputs["hidden_states"].shape[-3:],
            model.config.patch_size,  # type: ignore[union-attr]
            strict=True,
        )
    )
    if not frames * height * width:
        return ()
    grid = TokenGrid(frames=frames, height=height, width=width)
    # A picture to start from is looked at in a call of its own, attn2[0]: that is no text.
    return (GridRule("*.attn1", grid, exact=True), GridRule("*.attn2", None, after="text"))


def _text_before_video(model: nn.Module, inputs: Inputs) -> tuple[GridRule, ...]:
    """Of diffusers CogVideoX: joint attention over text and a latent (B, frames, C, h, w)."""
    latent, config = inputs["hidden_states"], model.config
    frames = latent.shape[1] // (config.patch_size_t or 1)  # type: ignore[union-attr]
    height, width = (side // config.patch_size for side in latent.shape[-2:])  # type: ignore[union-attr]
    if not frames * height * width:
        return ()
    text = inputs["encoder_hidden_states"].shape[1]
    grid = TokenGrid(frames=frames, height=height, width=width, start=text)
    return (GridRule("*", grid, exact=True, before=(("text", text),)),)


_BY_CLASS: dict[str, Callable[[nn.Module, Inputs], tuple[GridRule, ...]]] = {
    "DiTTransformer2DModel": _image_then_cross,
    "PixArtTransformer2DModel": _image_then_cross,
    "SD3Transformer2DModel": _image_before_text,
    "FluxTransformer2DModel": _text_before_image,
    "WanTransformer3DModel": _video_then_cross,
    "CogVideoXTransformer3DModel": _text_before_video,
}


def _from_config(model: nn.Module) -> tuple[GridRule, ...]:
    """A `config.grid` of (rows, columns), as ours has: every token is a patch."""
    grid = getattr(getattr(model, "config", None), "grid", None)
    return _exactly(grid, start=0)


def _from_embedding(model: nn.Module) -> tuple[GridRule, ...]:
    """A patch embedding with a `grid_size`, as in timm and the published DiT code."""
    for name in ("patch_embed", "x_embedder"):
        grid = getattr(getattr(model, name, None), "grid_size", None)
        if rules := _exactly(grid, start=getattr(model, "num_prefix_tokens", 0), model=model):
            return rules
    return ()


def _exactly(grid: object, start: int, model: nn.Module | None = None) -> tuple[GridRule, ...]:
    if not isinstance(grid, tuple) or len(grid) != 2:
        return ()
    height, width = (int(side) for side in grid)
    rule = GridRule(
        "*",
        TokenGrid(height=height, width=width, start=start),
        exact=True,
        before=_prefix(model, start),
    )
    return (rule,)


def _prefix(model: nn.Module | None, count: int) -> tuple[tuple[Kind, int], ...]:
    """The class token and the registers of timm, in this order, if that is all of the prefix."""
    registers = int(getattr(model, "num_reg_tokens", 0))
    classes = int(bool(getattr(model, "has_class_token", False)))
    return (("class", classes), ("register", registers)) if classes + registers == count else ()
