"""Editing one forward: its attention calls are changed in the order of the census.

Shapes: H heads, N queries, M keys, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ditscope.attention.edits.base import Edit, num_heads
from ditscope.attention.seam import AttentionCall, Seam
from ditscope.core.sites import Site
from ditscope.errors import BadRequest, NothingWatched

Change = tuple[Edit, tuple[int, ...] | None]
"""An edit, and the heads it changes; None: all."""


class EditedForward:
    """A context around exactly one forward of a model whose sites are known.

        with EditedForward([Temperature(1.3)], sites, step=0):
            model(x, t, y)

    Every call is led through the edits in their order. A call that none of them selects gets the
    model's own arguments, and a forward of such calls runs without a seam.

    Guarantees that every call met the census: else leaving the context raises NothingWatched. An
    exception of the forward passes through as it is.
    """

    def __init__(self, edits: Sequence[Edit], sites: Sequence[Site], step: int) -> None:
        """Prepare one forward; `edits` have been checked against `sites`."""
        self._sites = tuple(sites)
        self._changes = [_changes(edits, site, step) for site in sites]
        self._seam = Seam(change=self._change) if any(self._changes) else None
        self._calls = 0
        self._trains = torch.is_grad_enabled()

    def __enter__(self) -> Self:
        if self._seam:
            self._seam.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._seam:
            return
        self._seam.__exit__(kind, error, traceback)
        if kind is None and self._calls != len(self._sites):
            raise NothingWatched(
                f"the edited forward made {self._calls} attention calls, the census expects "
                f"{len(self._sites)}",
                fix="edit again if the model or its mode has changed; run attention in the thread "
                "and with the backend that were there for the census",
            )

    @property
    def acts(self) -> bool:
        """Whether any call is changed."""
        return self._seam is not None

    def _change(self, call: AttentionCall) -> AttentionCall:
        if isinstance(call.q, FakeTensor):  # the census of a part that is watched or edited as well
            return call
        index, self._calls = self._calls, self._calls + 1
        if index >= len(self._sites) or not self._changes[index]:
            return call
        site = self._sites[index]
        if num_heads(call) != site.heads:
            raise NothingWatched(
                f"{site.name} has {num_heads(call)} heads, the census expects {site.heads}",
                fix="edit again if the model has changed",
            )
        self._refuse_recomputation(site)
        for edit, heads in self._changes[index]:
            call = edit.change(call, heads)
        return call

    def _refuse_recomputation(self, site: Site) -> None:
        """Activation checkpointing runs the call again in the backward pass, where no seam is."""
        if self._trains and (not torch.is_grad_enabled() or _checkpointed()):
            raise BadRequest(
                f"{site.name} runs under activation checkpointing: the backward pass would "
                "compute its attention again, without the edit",
                field="model",
                fix="turn checkpointing off, or run the model under torch.no_grad()",
            )


def softmax_scales(edits: Sequence[Edit], sites: Sequence[Site], step: int) -> tuple[float, ...]:
    """The softmax scale of every site at `step`, as the edits leave it.

    Found by editing calls of tensors without numbers.
    """
    scales = []
    for site in sites:
        q = torch.empty(1, site.heads, site.queries, site.head_width, device="meta")
        k = torch.empty(1, site.heads, site.keys, site.head_width, device="meta")
        call = AttentionCall(q, k, k)
        for edit, heads in _changes(edits, site, step):
            call = edit.change(call, heads)
        scales.append(call.softmax_scale)
    return tuple(scales)


def _changes(edits: Sequence[Edit], site: Site, step: int) -> list[Change]:
    found = [(edit, edit.heads_at(site, step)) for edit in edits]
    return [(edit, None if len(heads) == site.heads else heads) for edit, heads in found if heads]


def _checkpointed() -> bool:
    if torch.compiler.is_compiling():  # the recomputation is part of the graph
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # type: ignore[attr-defined]
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
