"""Edits as they are typed: `--temperature 1.3 --temperature-layers 20-27 --ablate-heads 5:0-3`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ditscope.errors import BadRequest, foreign

if TYPE_CHECKING:
    from ditscope.attention.edits.kinds import AnyEdit

MAX_INDEX = 99_999
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def typed_edits(
    temperature: float | None,
    layers: str | None,
    heads: str | None,
    steps: str | None,
    ablated: str | None,
    ablated_steps: str | None,
) -> list[AnyEdit]:
    """The edits of a command line, temperature first.

    Args:
        temperature: None for none.
        layers: Where the temperature acts, as `indices` reads it; None: everywhere.
        heads: As layers.
        steps: As layers.
        ablated: As `places` reads it.
        ablated_steps: As layers.

    Raises:
        BadRequest: text that cannot be read, a place without an edit, a value out of range.
    """
    from ditscope.attention.edits.ablate_heads import AblateHeads
    from ditscope.attention.edits.temperature import Temperature

    where = {"layers": layers, "heads": heads, "steps": steps}
    idle = [name for name, text in where.items() if text is not None]
    if temperature is None and idle:
        raise BadRequest("has no --temperature", field=f"--temperature-{idle[0]}")
    if ablated is None and ablated_steps is not None:
        raise BadRequest("has no --ablate-heads", field="--ablate-steps")
    edits: list[AnyEdit] = []
    if temperature is not None:
        read = {name: indices(text, f"--temperature-{name}") for name, text in where.items()}
        edits.append(Temperature(temperature, **read))
    when = indices(ablated_steps, "--ablate-steps")
    for layer, chosen in places(ablated, "--ablate-heads").items():
        edits.append(AblateHeads(layers=layer, heads=sorted(chosen), steps=when))
    return edits


def indices(text: str | None, option: str) -> tuple[int, ...] | None:
    """`0,3,20-27` as numbers, both ends included; None stays None. Raises BadRequest."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(each) for each in (match[1], match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise BadRequest(
                f"found {foreign(repr(part))}",
                field=option,
                expected=f"numbers from 0 to {MAX_INDEX} and ranges of them, as 0,3,20-27",
            )
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


def places(text: str | None, option: str) -> dict[int, set[int]]:
    """`5:2,20-27:0-3` as heads by layer; None is nowhere. Raises BadRequest."""
    heads: dict[int, set[int]] = {}
    for part in text.split(",") if text is not None else ():
        layers, colon, chosen = part.partition(":")
        if not colon:
            raise BadRequest(
                f"found {foreign(repr(part))}",
                field=option,
                expected="LAYER:HEAD or ranges of both, as 5:2,20-27:0-3",
            )
        for layer in indices(layers, option) or ():
            heads.setdefault(layer, set()).update(indices(chosen, option) or ())
    return heads
