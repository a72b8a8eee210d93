"""Edits of the attention, and what was measured of it, in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditscope.core.keep import KeepRecord


def edit_text(edit: Mapping[str, object]) -> str:
    """An edit of any kind in a few words: temperature 1.3 (layers 20-27, heads 0, 3)."""
    kind = str(edit.get("kind"))
    value = f" {edit[kind]}" if kind in edit else ""
    others = [
        name for name, each in edit.items() if name not in ("kind", kind) and each is not None
    ]
    where = ", ".join(f"{name} {span_text(edit[name])}" for name in others)
    return f"{kind.replace('_', ' ')}{value} ({where or 'everywhere'})"


def keep_text(only: KeepRecord) -> str:
    """What was measured, in a few words: layers 0-3, heads 1, 16 queries of each head."""
    facts = only.facts()
    queries = facts.pop("queries", None)
    words = [f"{name} {span_text(value)}" for name, value in facts.items()]
    words += [f"{queries} queries of each head"] if queries else []
    return "; ".join(words) or "everything"


def span_text(value: object) -> str:
    """Items in a row, whole numbers that follow one another as 20-27; anything else as it is."""
    if not isinstance(value, list | tuple):
        return str(value)
    spans: list[list[object]] = []
    for item in value:
        if spans and isinstance(item, int) and spans[-1][-1] == item - 1:
            spans[-1][1:] = [item]
        else:
            spans.append([item])
    return ", ".join("-".join(map(str, span)) for span in spans) or "none"
