"""What counts as a whole number in an argument: any integer type, but not True or False."""

from __future__ import annotations

import operator


def as_index(value: object) -> int:
    """`value` as an int.

    Raises:
        TypeError: it is no integer; a bool is none, though Python would take it for 0 or 1.
    """
    if isinstance(value, bool):
        raise TypeError("a bool is no whole number")
    return operator.index(value)  # type: ignore[arg-type]
