"""`edit`: change the attention of any PyTorch model while it runs.

with edit(model, Temperature(1.3, layers=range(20, 28)), AblateHeads(layers=3, heads=[0, 5])):
    model(x, t, y)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from torch import nn

from ditscope.attention.around import Around, checked_module
from ditscope.attention.census import Census, refuse_fused, take_census, warn_of_unseen
from ditscope.attention.edits.base import Edit
from ditscope.attention.edits.forward import EditedForward
from ditscope.errors import BadRequest, NothingWatched

_active: list[Editing] = []  # in a block now, in whatever thread


def edit(model: nn.Module, *edits: Edit) -> Editing:
    """Lead every attention call of `model` through `edits`, in their order, in a `with` block.

    Args:
        model: Any module whose attention calls `F.scaled_dot_product_attention`.
        edits: What to change. Here `steps` counts the forwards of the model in the block, from 0.

    Edits nest: of two blocks the inner one acts first. A watch of the model sees what the kernel
    sees: the attention as edited. Gradients are those of the edited model. A compiled model works
    with every backend that lowers to operators of ATen, as inductor does; `backend="eager"`, meant
    for debugging, would run the traced edit and then edit once more.

    Raises:
        BadRequest: model is no module, or an edit is none; on the first forward, a layer or head
            does not exist; at the end of the block, there was no such forward as `steps` says.
        NothingWatched: from a forward in the block, if no attention can be seen in it or not what
            the census expects; at the end of the block, if there was no forward.
    """
    strange = [each for each in edits if not isinstance(each, Edit)]
    if strange or not edits:
        found = f"a {type(strange[0]).__name__}" if strange else "nothing"
        raise BadRequest(f"found {found}", field="edits", expected="edits, as ds.Temperature(1.3)")
    return Editing(checked_module(model, "edit"), edits)


class Editing:
    """A model under edits. Made by `edit`.

    Guarantees that the model is left as it was, also by an exception. A neutral edit, and a call
    that none selects, leave the model its bits.
    """

    def __init__(self, model: nn.Module, edits: tuple[Edit, ...]) -> None:
        self._model, self._edits = model, edits
        self._census: Census | None = None
        self._forwards = 0
        self._lock = threading.Lock()
        self._around = Around(model, self._edited)

    def __enter__(self) -> Self:
        self._forwards = 0
        self._around.__enter__()
        _active.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _active.remove(self)
        self._around.__exit__(kind, error, traceback)
        if kind is not None:
            return
        if self._census is None or not self._forwards:
            raise NothingWatched(
                f"{type(self._model).__name__} was not called in the block",
                fix="call the very module that is edited, not a copy or a part of it",
            )
        for each in self._edits:
            each.check(self._census.sites, self._forwards)

    @contextmanager
    def _edited(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        """Around one forward."""
        with self._lock:
            if self._census is None:
                census = take_census(self._model, args, kwargs)
                for each in self._edits:
                    each.check(census.sites)
                warn_of_unseen(census, "edited")
                self._census = census
            step, self._forwards = self._forwards, self._forwards + 1
        forward = EditedForward(self._edits, self._census.sites, step)
        if forward.acts:
            refuse_fused(self._census.fused)
        with forward:
            yield


def is_edited(model: nn.Module) -> bool:
    """Whether `model` or a part of it is inside a block of `edit` now."""
    parts = set(model.modules())
    return any(each._model in parts for each in _active)
