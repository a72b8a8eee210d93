"""The seam: where a model's attention calls are seen, and nothing is changed.

A `TorchFunctionMode` sees `F.scaled_dot_product_attention` itself. The model's own tensors go to
the model's own function; what it was given and what it returned is then shown to an observer.

Shapes: B rows, H heads, N queries, M keys, K head width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

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


Observer = Callable[[AttentionCall, Tensor], None]
"""Is shown a call as the kernel saw it and its output, both detached; must not change either."""


class Seam(TorchFunctionMode):
    """While entered, shows every attention call of this thread to `observe`, after it has run.

    Guarantees that the model computes the same bits as without: the original function gets the
    original tensors, the observer runs without gradients and outside autocast, and the seam comes
    off when the block ends, also by an exception. Seams nest; the inner one sees a call first.
    """

    def __init__(self, observe: Observer) -> None:
        super().__init__()
        self._observe = observe

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let `func` run; show it to the observer if it is attention."""
        kwargs = kwargs or {}
        if func is ATTENTION:
            return self.attend(func, *args, **kwargs)
        if func in COMPOSITES:
            with _reached_by(self):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def attend(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run the attention `function` on its own arguments and show the call."""
        output = function(*args, **kwargs)
        device = output.device.type
        with torch.no_grad():
            call = _as_the_kernel_sees(*args, **kwargs)
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    self._observe(call, output.detach())
            else:
                self._observe(call, output.detach())
        return output


def _as_the_kernel_sees(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    """The call with its tensors detached, and cast as autocast will: it acts after the mode."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def seen(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        casts = dtype and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if casts else tensor

    mask = None if attn_mask is None else seen(attn_mask)
    return AttentionCall(
        seen(query), seen(key), seen(value), mask, dropout_p, is_causal, scale, enable_gqa
    )


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
