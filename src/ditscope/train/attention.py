"""Attention with a backward pass that a CPU runs fast, for as long as a step trains.

The fused kernel is fast forwards; backwards its CPU version takes five to seven times as long, and
makes hardly any use of matrix units. Here the map is made again, some heads at a time so that it
stays in a cache, and goes through plain batched products:

    P = softmax(s Q K^T)    dV = P^T dO    dS = P * (dO V^T - rowsum(dO V^T * P))
    dQ = s dS K             dK = s dS^T Q

(Dao et al. 2022, arXiv:2205.14135, appendix B.2). Forwards, and so in what is learned from, nothing
changes by a bit; gradients differ from the fused kernel's by rounding, scores being kept in the
number type of the operands.

Shapes: B rows, H heads, N queries, M keys, K head width, T rows times heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

TILE_ELEMENTS = 2**21  # scores that are held at a time: 4 MiB in bfloat16
MAX_KEYS = 1024
"""Up to here the fused backward pass is slower."""


class FastBackward(TorchFunctionMode):
    """While entered, attention calls on a CPU in half precision get the backward pass above.

    Calls with a mask, dropout, shared keys, or more than `MAX_KEYS` keys are left alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let `func` run, with another gradient if it is such a call."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and _plain(*args, kwargs):
            scale = kwargs.get("scale")
            return _Attention.apply(*args, args[0].shape[-1] ** -0.5 if scale is None else scale)
        return func(*args, **kwargs)


def _plain(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> bool:
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.dtype == k.dtype == v.dtype
        and q.dim() == 4
        and k.shape[-2] <= MAX_KEYS
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and options.get("attn_mask") is None
        and not any(options.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # may be unpacked once only
        q, k, v = (tensor.flatten(0, 1) for tensor in saved)  # (T, N, K), (T, M, K)
        gradient = grad_outputs[0].flatten(0, 1)
        dq, dk, dv = (torch.empty_like(tensor) for tensor in (q, k, v))
        tile = max(1, TILE_ELEMENTS // (q.shape[1] * k.shape[1]))
        for first in range(0, len(q), tile):
            heads = slice(first, first + tile)
            scaled = q[heads] * ctx.scale
            p = torch.bmm(scaled, k[heads].mT).softmax(-1)  # (t, N, M)
            torch.bmm(p.mT, gradient[heads], out=dv[heads])
            dp = torch.bmm(gradient[heads], v[heads].mT)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            torch.bmm(ds, k[heads], out=dq[heads])
            torch.bmm(ds.mT, scaled, out=dk[heads])
        dq.mul_(ctx.scale)
        parts = (each.view(x.shape) for each, x in zip((dq, dk, dv), saved, strict=True))
        return *parts, None
