"""Metrics from one pass over the scores of a call, by the kernel of the device.

A kernel makes scores, sums over them while they are at hand, and forgets them: in float32 whatever
the operands are, so its numbers are as exact as those of tiles. It is tried against plain
arithmetic before they are trusted.

With the largest score m of a query and w_j = exp(s_j - m), a kernel finds sums over keys j, from
which everything follows, W being the sum of w:

    log-sum-exp    m + log W                        largest probability    1 / W
    entropy        log W - sum w log w / W          participation          W^2 / sum w^2
    expectation    sum w f / W, of squared distances, distances and displacements

Shapes: B rows, H heads, T rows times heads, N queries, M keys, I image tokens.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ditscope.attention.kernels import cpu
from ditscope.attention.kernels.sums import Sums, Wanted
from ditscope.attention.metrics.evidence import Evidence
from ditscope.attention.metrics.plan import Plan
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import Operands
from ditscope.core.sites import TokenGrid


@dataclass(frozen=True)
class Kernel:
    """A kernel of one type of device."""

    available: Callable[[], bool]
    sums: Callable[[Operands, Scope, Wanted], Sums]
    """Of a call without mask, of at least one query and key and a positive scale."""


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _sums_by_triton(attention: Operands, scope: Scope, wanted: Wanted) -> Sums:
    from ditscope.attention.kernels import triton_rows

    return triton_rows.sums(attention, scope, wanted)


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = 1e-4

_KERNELS = {
    "cpu": Kernel(cpu.available, cpu.sums),
    "cuda": Kernel(_has_triton, _sums_by_triton),
}
_trusted: dict[tuple[str, torch.dtype, int], bool] = {}


def serves(attention: Operands, grid: TokenGrid | None = None) -> bool:
    """Whether a kernel is at hand for such a call; the first question tests it on a few numbers."""
    q, k = attention.q, attention.k
    if grid and grid.start + grid.count > min(q.shape[2], k.shape[2]):
        return False
    if type(q) is not Tensor or type(k) is not Tensor or torch.compiler.is_compiling():
        return False
    if not attention.plain or not attention.scale > 0 or not (q.numel() and k.numel()):
        return False
    key = (q.device.type, q.dtype, q.shape[-1])
    if key not in _trusted:
        kernel = _KERNELS.get(q.device.type) if q.dtype in DTYPES else None
        available = kernel is not None and kernel.available()
        _trusted[key] = available and _keeps_its_word(q.device, q.dtype, q.shape[-1])
    return _trusted[key]


def evidence_of_rows(attention: Operands, scope: Scope, plan: Plan) -> Evidence:
    """What the metrics of `plan` are finished from, if `plan.one_pass` and `serves(attention)`."""
    made = {metric.name for metric in (*plan.queries, *plan.image)}
    grid = scope.grid if plan.image else None
    wanted = Wanted(
        square="participation" in made,
        places=grid is not None,
        centre="centroid_offset" in made,
        distance="mean_distance" in made,
        received=bool(plan.received or plan.columns),
    )
    sums = _KERNELS[scope.device.type].sums(attention, scope, wanted)
    log_w = sums.w.log()
    finished: dict[str, Callable[[], Tensor]] = {
        "entropy": lambda: log_w - sums.w_log2_w / sums.w * math.log(2),
        "largest_probability": sums.w.reciprocal,
        "participation": lambda: sums.w.square() / sums.w_square,
        "rms_distance": lambda: sums.square / sums.image,
        "mean_distance": lambda: sums.distance / sums.image,
        "centroid_offset": lambda: sums.offset.norm(dim=0) / sums.image,
    }
    means, tokens = {}, {}
    for metric in (*plan.queries, *(plan.image if grid else ())):
        value = finished[metric.name]()
        means[metric.name] = _image(value, grid if metric in plan.image else None).mean(-1)
        if plan.tokens:
            tokens[metric.name] = _only_image(value, grid if metric in plan.image else None)
    share = None if sums.received is None else sums.received / scope.queries
    return Evidence(sums.largest + log_w, means, share, tokens)


def _image(value: Tensor, grid: TokenGrid | None) -> Tensor:
    """The numbers (T, I) of image tokens; those of all, without a grid."""
    return value if grid is None else value[:, grid.start : grid.start + grid.count]


def _only_image(value: Tensor, grid: TokenGrid | None) -> Tensor:
    """The numbers (T, N), NaN of tokens that are no image tokens; all, without a grid."""
    if grid is None:
        return value
    everyone = torch.full_like(value, torch.nan)
    _image(everyone, grid).copy_(_image(value, grid))
    return everyone


def _keeps_its_word(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Compare with a softmax by hand: N not a multiple of a tile, N != M, a part that is image."""
    generator = torch.Generator().manual_seed(0)  # leaves the global generator alone
    q, k = (torch.randn(2, 3, n, width, generator=generator).to(device, dtype) for n in (37, 41))
    scale = 2 * width**-0.5
    grid = TokenGrid(height=5, width=6, start=4)
    scope = Scope(3, 37, 41, device, grid)
    every = Wanted(True, True, True, True, True)
    try:
        found = _KERNELS[device.type].sums(Operands(q, k, scale), scope, every)
        off = _worst(found, (scale * q.double() @ k.double().mT).flatten(0, 1), grid)
        if off <= TOLERANCE:
            return True
        reason = f"it is off by {off:.1e}"
    except Exception as problem:  # whatever a compiler says
        reason = str(problem)
    warnings.warn(
        f"the attention kernel of {device.type} in {dtype} is not used for statistics, which will "
        f"be slower: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _worst(found: Sums, scores: Tensor, grid: TokenGrid) -> float:
    """The largest error of any sum, as a share of it where it is not a logarithm."""
    largest = scores.amax(-1)
    u = scores - largest.unsqueeze(-1)
    w, p = u.exp(), scores.softmax(-1)
    image = slice(grid.start, grid.start + grid.count)
    token = torch.arange(grid.count, device=scores.device)
    place = torch.stack([0 * token, token // grid.width, token % grid.width], -1).double()
    apart = place - place[:, None]  # (I, I, 3): from query to key
    among = w[:, image, image]
    here = (..., image)
    pairs = [
        (found.largest, largest),
        (found.w, w.sum(-1)),
        (found.w_log2_w, (w * u).sum(-1) / math.log(2)),
        (found.w_square, w.square().sum(-1)),
        (found.received, p.sum(-2)),
    ]
    scale = among.sum(-1) / found.image[here]  # the weights of the image may start elsewhere
    pairs += [
        (scale * found.square[here], (among * apart.square().sum(-1)).sum(-1)),
        (scale * found.distance[here], (among * apart.norm(dim=-1)).sum(-1)),
        (
            scale * found.offset[here].norm(dim=0),
            torch.einsum("tij,ijc->tic", among, apart).norm(dim=-1),
        ),
    ]
    errors = [((a - b).abs() / b.abs().clamp(min=1)).amax() for a, b in pairs if a is not None]
    return float(torch.stack(errors).nan_to_num(torch.inf).amax())
