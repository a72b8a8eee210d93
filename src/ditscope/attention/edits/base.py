"""What an edit is: a pure function from an attention call to a changed one, and where it acts.

To add one: a file here with a subclass of `Edit`, and its name in `kinds.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TypedDict

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ditscope.attention.seam import AttentionCall
from ditscope.core.places import Indices, Layers, check_places, is_among
from ditscope.core.sites import Site
from ditscope.errors import BadRequest, foreign


class Places(TypedDict, total=False):
    """Where an edit acts, as its constructor takes it: one item or several. None: everywhere."""

    layers: int | str | Iterable[int | str] | None
    heads: int | Iterable[int] | None
    steps: int | Iterable[int] | None


class Edit(BaseModel, ABC):
    """Base of all edits: which calls and heads one changes, and, in a subclass, into what.

    `layers` are sites: indices in call order, or globs of names. `heads` are indices. `steps` are
    evaluations of a sampling; of a bare model, its forwards in the block of `edit`, from 0. None
    selects all there are, an empty tuple nothing. The fields go to the manifest of a run as they
    are, so they must say everything about the edit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    layers: Layers = None
    heads: Indices = None
    steps: Indices = None

    def __init__(self, *values: object, **fields: object) -> None:
        """`values` are those of the fields that the subclass adds, in their order.

        Raises BadRequest for a field that is unknown, missing, of the wrong type or out of range.
        """
        own = [name for name in type(self).model_fields if name not in (*Edit.model_fields, "kind")]
        if len(values) > len(own):
            raise BadRequest(
                f"{len(values)} values without a name",
                field=type(self).__name__,
                expected=f"at most {len(own)}; the places by name: layers, heads, steps",
            )
        try:
            super().__init__(**dict(zip(own, values, strict=False)), **fields)
        except ValidationError as reason:
            first = reason.errors(include_url=False)[0]
            problem = first["msg"].removeprefix("Value error, ")
            found = "" if first["type"] == "missing" else f", found {foreign(repr(first['input']))}"
            raise BadRequest(
                problem + found, field=f"{type(self).__name__}.{first['loc'][0]}"
            ) from None

    @property
    def neutral(self) -> bool:
        """Whether it changes nothing wherever it acts. Such an edit is never applied."""
        return False

    @abstractmethod
    def change(self, call: AttentionCall, heads: tuple[int, ...] | None) -> AttentionCall:
        """The changed call: new tensors where they differ, never the old ones written to.

        It must let gradients through and make no copy to or from the host.

        Args:
            call: Its tensors are the model's own, before autocast casts them.
            heads: The heads to change, at least one and not all; None: all.
        """

    def heads_at(self, site: Site, step: int) -> tuple[int, ...]:
        """The heads of `site` that it changes at `step`: none, some or all."""
        if (
            self.neutral
            or not is_among(site, self.layers)
            or (self.steps is not None and step not in self.steps)
        ):
            return ()
        return tuple(range(site.heads)) if self.heads is None else tuple(sorted({*self.heads}))

    def check(self, sites: Sequence[Site], steps: int | None = None) -> None:
        """Check that every layer, head and step it names exists.

        Args:
            sites: From `census`.
            steps: How many there are; None if that is not known yet.

        Raises:
            BadRequest: names what does not exist, and what does.
        """
        places = {"layers": self.layers, "heads": self.heads, "steps": self.steps}
        check_places(type(self).__name__, sites, steps, **places)


def chosen(call: AttentionCall, heads: tuple[int, ...]) -> Tensor:
    """Which heads of a call (..., H, N, K) are among `heads`: bool (H, 1, 1) on its device."""
    mask = torch.zeros(num_heads(call), 1, 1, dtype=torch.bool, device=call.q.device)
    for head in heads:
        mask[head] = True  # not by a list: that would be copied from the host
    return mask


def num_heads(call: AttentionCall) -> int:
    """Heads of the map; a call without such an axis has one."""
    if call.q.dim() < 4:
        return 1
    if call.enable_gqa:
        return call.q.shape[-3]
    return torch.broadcast_shapes(call.q.shape[:-2], call.k.shape[:-2])[-1]
