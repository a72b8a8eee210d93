"""What to measure, as it is typed: `--record-layers 20-27 --record-queries 16`."""

from __future__ import annotations

import re

from ditscope.cli.edits import indices
from ditscope.core.keep import Keep
from ditscope.errors import BadRequest

_NUMBERS = re.compile(r"[-0-9 ]+")


def typed_keep(
    layers: str | None,
    heads: str | None,
    steps: str | None,
    branches: str | None,
    queries: int | None,
) -> Keep:
    """The selection of a command line.

    Args:
        layers: Numbers and ranges, and globs of the names of sites, with commas; None: all.
        heads: As `indices` reads it; None: all.
        steps: As heads.
        branches: cond, uncond or both with a comma; None: those evaluated.
        queries: How many of each head, an even number; None: every query.

    Raises:
        BadRequest: text that cannot be read, or a number out of range.
    """
    try:
        return Keep(
            layers=_layers(layers),
            heads=indices(heads, "--record-heads"),
            steps=indices(steps, "--record-steps"),
            branches=None if branches is None else _parts(branches),
            queries=queries,
        )
    except BadRequest as reason:
        if not reason.field or not reason.field.startswith("Keep."):
            raise
        raise BadRequest(
            reason.problem,
            field=reason.field.replace("Keep.", "--record-"),
            expected=reason.expected,
            fix=reason.fix,
        ) from None


def _layers(text: str | None) -> tuple[int | str, ...] | None:
    if text is None:
        return None
    found: list[int | str] = []
    for part in _parts(text):
        named = part and not _NUMBERS.fullmatch(part)
        found += [part] if named else indices(part, "--record-layers") or ()
    return tuple(dict.fromkeys(found))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))
