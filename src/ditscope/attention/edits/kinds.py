"""All kinds of edits, and the way from an edit to JSON and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, RootModel

from ditscope.attention.edits.ablate_heads import AblateHeads
from ditscope.attention.edits.base import Edit
from ditscope.attention.edits.temperature import Temperature
from ditscope.core import strict_json
from ditscope.errors import BadInput, BadRun

AnyEdit = Annotated[Temperature | AblateHeads, Field(discriminator="kind")]
"""What a manifest can hold: every kind is named here."""

Spec = dict[str, object]
"""An edit as JSON."""


class _Edits(RootModel[tuple[AnyEdit, ...]]):
    pass


def specs_of(edits: Sequence[Edit]) -> tuple[Spec, ...]:
    """The edits as data, for a manifest."""
    return tuple(edit.model_dump(mode="json") for edit in edits)


def edits_of(
    specs: Sequence[Spec],
    *,
    file: str | os.PathLike[str] | None = None,
    error: type[BadInput] = BadRun,
) -> tuple[AnyEdit, ...]:
    """The edits that `specs_of` has described.

    Raises:
        error: an unknown kind, or a field that is unknown, missing, of the wrong type or out of
            range; names it and `file`.
    """
    return strict_json.validated(_Edits, list(specs), file=file, field="edits", error=error).root
