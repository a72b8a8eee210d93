"""What a user calls a class, turned into its index."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import SupportsIndex

from ditscope.core.integers import as_index
from ditscope.errors import BadRequest, foreign, listed

MAX_SUGGESTIONS = 3


def find_class(wanted: str | SupportsIndex, class_names: Sequence[str]) -> int:
    """Index of the class that `wanted` names: its name, in any letter case, or its index.

    Text that is a whole number counts as an index unless a class has that very name.

    Raises:
        BadRequest: no class has that name (the nearest names are listed), more than one has, or
            the index is out of range.
    """
    if not isinstance(wanted, str):
        try:
            return _checked_index(as_index(wanted), len(class_names))
        except TypeError as error:
            raise BadRequest(
                f"{foreign(wanted)} is neither a class name nor an index", field="class"
            ) from error
    key = _key(wanted)
    matches = [index for index, name in enumerate(class_names) if _key(name) == key]
    exact = [index for index in matches if class_names[index] == wanted]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if matches:
        raise BadRequest(
            f"{len(matches)} classes are called '{foreign(wanted)}'",
            field="class",
            expected=f"one of the indices {listed(matches)}",
        )
    if re.fullmatch("-?[0-9]{1,18}", key):
        return _checked_index(int(key), len(class_names))
    raise BadRequest(
        f"there is no class '{foreign(wanted)}'",
        field="class",
        expected=f"a class name or an index from 0 to {len(class_names) - 1}",
        fix=f"Nearest names: {listed(_nearest(key, class_names))}",
    )


def _nearest(key: str, class_names: Sequence[str]) -> list[str]:
    """The few names that look most like `key`, as a whole or in one of their words."""
    matcher = difflib.SequenceMatcher(b=key)

    def likeness(name: str) -> float:
        ratios = []
        for part in {_key(name), *re.findall(r"\w+", _key(name))}:
            matcher.set_seq1(part)
            ratios.append(matcher.ratio())
        return max(ratios)

    return sorted(class_names, key=likeness, reverse=True)[:MAX_SUGGESTIONS]


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def _checked_index(index: int, count: int) -> int:
    if not 0 <= index < count:
        raise BadRequest(
            f"there is no class {index}",
            field="class",
            expected=f"an index from 0 to {count - 1}",
        )
    return index
