"""Layers, heads and steps as they are named, by index or glob, and whether they exist."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BeforeValidator, NonNegativeInt

from ditscope.core.sites import Site
from ditscope.errors import BadRequest, foreign, listed


def several(value: Any) -> object:
    """One item or many, as a tuple; whole numbers of any library as int."""
    if value is None:
        return None
    many = isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1)
    if not many:
        value = (value,)
    try:
        return tuple(
            each if isinstance(each, str | bool) else operator.index(each) for each in value
        )
    except TypeError:
        raise ValueError("Input should be an index or several") from None


Layers = Annotated[tuple[NonNegativeInt | str, ...] | None, BeforeValidator(several)]
"""Sites: indices in call order, or globs of names. None: all."""

Indices = Annotated[tuple[NonNegativeInt, ...] | None, BeforeValidator(several)]
"""Heads or steps. None: all."""


def is_among(site: Site, layers: Sequence[int | str] | None) -> bool:
    """Whether a site is named by `layers`; None names all."""
    return layers is None or any(_is(site, layer) for layer in layers)


def check_places(
    who: str,
    sites: Sequence[Site],
    num_steps: int | None,
    *,
    layers: Sequence[int | str] | None,
    heads: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> None:
    """Check that every layer, head and step that is named exists.

    Args:
        who: The name of what names them, for messages.
        sites: From `census`.
        num_steps: How many steps there are; None if that is not known yet.
        layers: Indices in call order, or globs of names; None: all.
        heads: Of each of those layers; None: all.
        steps: None: all.

    Raises:
        BadRequest: names what does not exist, and what does.
    """
    for layer in layers or ():
        if not any(_is(site, layer) for site in sites):
            raise BadRequest(
                f"there is no layer {foreign(layer)}",
                field=f"{who}.layers",
                expected=f"0 to {len(sites) - 1}, or globs of "
                f"{listed(site.name for site in sites)}",
            )
    for site in sites:
        absent = [head for head in heads or () if head >= site.heads]
        if absent and is_among(site, layers):
            raise BadRequest(
                f"{site.name} has no head {listed(absent)}",
                field=f"{who}.heads",
                expected=f"0 to {site.heads - 1}",
            )
    absent = [step for step in steps or () if num_steps is not None and step >= num_steps]
    if absent:
        raise BadRequest(
            f"there is no step {listed(absent)}",
            field=f"{who}.steps",
            expected=f"0 to {(num_steps or 0) - 1}",
        )


def _is(site: Site, layer: int | str) -> bool:
    if isinstance(layer, str):
        return site.name == layer or fnmatchcase(site.name, layer)
    return site.index == layer
