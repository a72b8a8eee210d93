"""The seam: where a model's attention calls are seen, and changed on request.

A `TorchFunctionMode` sees `F.scaled_dot_product_attention` itself. The model's own tensors go to
the model's own function, unless an edit puts others in their place; what the function was given
and what it returned is then shown to observers.

Shapes: B rows, H heads, N queries, M keys, K head width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

ATTENTION = F.scaled_dot_product_attention
COMPOSITES = frozenset({F.multi_head_attention_forward})
"""Functions that make their attention call out of sight: the mode is off while it handles them."""


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call, under the names of `F.scaled_dot_product_attention`."""

    q: Tensor  # (B, H, N, K)
    k: Tensor  # (B, H, M, K)
    v: Tensor  # (B, H, M, *)
    attn_mask: Tensor | None = None  # bool (True: sees it) or additive, broadcasts to (B, H, N, M)
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def softmax_scale(self) -> float:
        """What scores are multiplied by before the softmax."""
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    @property
    def arguments(self) -> dict[str, Any]:
        """The call again, by the keywords of `F.scaled_dot_product_attention`."""
        arguments = {field.name: getattr(self, field.name) for field in fields(self)}
        q, k, v = (arguments.pop(name) for name in "qkv")
        return {"query": q, "key": k, "value": v, **arguments}


Observer = Callable[[AttentionCall, Tensor], None]
"""Is shown a call as the kernel saw it and its output, both detached; must not change either."""

Change = Callable[[AttentionCall], AttentionCall]
"""Makes of a call the one that is run. Returns the very call that it got to leave it alone."""


class Seam(TorchFunctionMode):
    """While entered, leads every attention call of this thread through `change`, runs it, shows it.

    Guarantees that without `change`, and wherever it leaves a call alone, the model computes the
    same bits as without a seam: the original function gets the original arguments, the observer
    runs without gradients and outside autocast, and the seam comes off when the block ends, also
    by an exception.

    Seams nest; the inner one gets a call first, and the outer one what became of it. An observer
    sees what the kernel sees, so changes reach it from whichever side.
    """

    def __init__(self, observe: Observer | None = None, *, change: Change | None = None) -> None:
        super().__init__()
        self._observe, self._change = observe, change
        self._served: list[Seam] = []  # whose observers are shown calls when this seam has run them
        self._server: Seam | None = None  # while entered, who shows calls to our observer

    def __enter__(self) -> Self:
        changing = _changing()
        if self._observe is not None:
            self._server = changing[0] if changing else self  # beyond us a call may still change
            self._server._served.append(self)
        if self._change is not None:
            changing.append(self)
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self._change is not None:
            _changing().remove(self)
        if self._server is not None:
            self._server._served.remove(self)
            self._server = None  # it may be ourselves

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let `func` run; lead it through the seam if it is attention."""
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self.attend(func, *args, **kwargs)
        if func in COMPOSITES:
            with _reached_by(self):
                return func(*args, **kwargs)
        if func is Tensor.unflatten and torch.compiler.is_compiling():
            return args[0].unflatten(*args[1:], **kwargs)  # Dynamo cannot follow its super()
        return func(*args, **kwargs)

    def attend(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run the attention `function` on its own arguments, or on what they are changed to."""
        if self._change is not None:
            call = _call(*args, **kwargs)
            changed = self._change(call)
            if changed is not call:
                args, kwargs = (), changed.arguments
        output = function(*args, **kwargs)
        if self._served:
            self._show(_call(*args, **kwargs), output)
        return output

    @torch.no_grad()
    def _show(self, call: AttentionCall, output: Tensor) -> None:
        device = output.device.type
        call = _as_the_kernel_sees(call)
        autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            for seam in self._served:
                assert seam._observe is not None
                seam._observe(call, output.detach())


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """The signature of `F.scaled_dot_product_attention`."""
    return AttentionCall(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def _as_the_kernel_sees(call: AttentionCall) -> AttentionCall:
    """The call with its tensors detached, and cast as autocast will: it acts after the mode."""
    device = call.q.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def seen(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        casts = dtype and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if casts else tensor

    mask = None if call.attn_mask is None else seen(call.attn_mask)
    return replace(call, q=seen(call.q), k=seen(call.k), v=seen(call.v), attn_mask=mask)


_on = threading.local()  # .changing: the seams of this thread that change calls, outermost first


def _changing() -> list[Seam]:
    if not hasattr(_on, "changing"):
        _on.changing = []
    return _on.changing


_inside = threading.local()  # .seams: those of this thread that are inside a composite function
_lock = threading.Lock()
_threads_inside = 0
_replaced: Callable[..., Tensor] = ATTENTION


@contextmanager
def _reached_by(seam: Seam) -> Iterator[None]:
    """Lead the attention call inside a composite function through `seam`.

    The function is replaced for the whole process, so the replacement asks which seams of its own
    thread want the call, and the last composite to end, in whatever thread, takes it out.
    """
    global _threads_inside, _replaced
    _inside.seams = [*getattr(_inside, "seams", ()), seam]
    with _lock:
        if _threads_inside == 0:
            _replaced = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = _led
        _threads_inside += 1
    try:
        yield
    finally:
        _inside.seams = _inside.seams[:-1]
        with _lock:
            _threads_inside -= 1
            if _threads_inside == 0:
                F.scaled_dot_product_attention = _replaced


def _led(*args: Any, **kwargs: Any) -> Tensor:
    """Attention, seen by the seams of this thread; the first to meet the composite sees first."""
    attention = _replaced
    for seam in reversed(getattr(_inside, "seams", ())):
        attention = partial(seam.attend, attention)
    return attention(*args, **kwargs)
