"""The metrics of one attention call, in the cheapest of three ways.

By rows: a kernel of ours makes one pass over the scores and keeps none. It serves some metrics,
calls without a mask, and machines where it can be had; see `kernels.rows`.

By fused calls: the default metrics are attention again, with other values, and no map is made. With
`l` the log-sum-exp of a query and `P` the map,

* entropy: `mean l - scale * mean <q, P k>`, from a call whose values are the keys;
* received mass: swap queries and keys and add `-l` to the scores of what are now the keys; the
  log-sum-exp of that call is the logarithm of the column sums of P;
* distance: the values of the swapped call are one-hot columns of the grid row and grid column of
  each query, so its output holds, for every key, where its readers are. The mean square distance
  is then a sum of terms that are never negative and do not cancel in low precision.

On a CPU these calls pay only in low precision and for many tokens.

By tiles: all else, in one pass over tiles of scores in float32, which serves every metric and mask.

Shapes: B rows, H heads, N queries, M keys, K head width, G grid rows plus grid columns.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from ditscope.attention.kernels.rows import evidence_of_rows, serves
from ditscope.attention.lse import LOW_PRECISION, attention_lse, has_fused_lse
from ditscope.attention.metrics.evidence import Evidence, Measured, measured
from ditscope.attention.metrics.plan import Plan, plan_of
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import Operands, operands
from ditscope.attention.seam import AttentionCall
from ditscope.attention.tables import lines, squared_distances_to_lines
from ditscope.attention.tiles import tiled_evidence
from ditscope.core.sites import TokenGrid, TokenSegment
from ditscope.core.statistics import DEFAULT_METRICS

CPU_FUSED_KEYS = 1024
"""Keys from which, in low precision, the fused operators beat tiles on a CPU (measured)."""

CENTRE_SAMPLE = 16  # keys that are looked at to find a common offset


def head_statistics(
    call: AttentionCall, grid: TokenGrid | None, names: Collection[str] = DEFAULT_METRICS
) -> dict[str, Tensor]:
    """Metrics of every head of a call, as `ditscope.core.statistics.STATISTICS` defines them.

    Args:
        call: An attention call.
        grid: Which tokens are patches, of the queries as of the keys; None if they are not known.
        names: Which metrics.

    Returns:
        By name, (B, H) float32 on the device of the call. What has a place covers the image queries
        and is taken over the image keys, renormalised to them; NaN without a grid. A query that a
        mask hides every key from is left out.
    """
    return statistics_and_lse(operands(call), grid, names)[0]


def statistics_and_lse(
    attention: Operands, grid: TokenGrid | None, names: Collection[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """As `head_statistics`, with the log-sum-exp (B, H, N) float32 that is found on the way."""
    found = measure(attention, plan_of(tuple(names)), grid)
    return found.heads, found.lse


def measure(
    attention: Operands,
    plan: Plan,
    grid: TokenGrid | None = None,
    segments: tuple[TokenSegment, ...] = (),
) -> Measured:
    """The metrics of `plan` of one call.

    Args:
        attention: What makes the map.
        plan: From `plan_of`.
        grid: Which tokens are patches, of the queries as of the keys.
        segments: What is known of the other keys.

    Raises:
        BadRequest: a registered metric returned what is no metric; the message names it.
    """
    q, k = attention.q, attention.k
    scope = Scope(q.shape[1], q.shape[2], k.shape[2], q.device, grid, segments)
    evidence = _WAYS[way(attention, scope, plan)](attention, scope, plan)
    return measured(evidence, scope, plan)


def way(attention: Operands, scope: Scope, plan: Plan) -> str:
    """How the metrics of a call are made: by "rows", by "fused" calls or by "tiles"."""
    if plan.one_pass and serves(attention, scope.grid):
        return "rows"
    planar = scope.grid is None or scope.grid.frames == 1  # else distances have three axes
    return "fused" if plan.fusable and planar and _fused_pays(attention) else "tiles"


def _fused_pays(attention: Operands) -> bool:
    q, k = attention.q, attention.k
    if not attention.plain or q.dtype not in (*LOW_PRECISION, torch.float32):
        return False
    if q.stride(-1) != 1 or k.stride(-1) != 1:  # as the public function requires for this kernel
        return False
    on_cpu = q.device.type == "cpu"
    if on_cpu and (q.dtype not in LOW_PRECISION or k.shape[2] < CPU_FUSED_KEYS):
        return False
    return has_fused_lse(q.device, q.dtype)


def _fused_evidence(attention: Operands, scope: Scope, plan: Plan) -> Evidence:
    q, k, scale = attention.q, attention.k, attention.scale
    means: dict[str, Tensor] = {}
    centre = _common_offset(k) if q.dtype in LOW_PRECISION else None
    read, lse = attention_lse(q, k, k if centre is None else k - centre, None, scale)
    if "entropy" in plan.made:
        score = (read.float() * q.float()).sum((-1, -2))  # (B, H), over all queries
        if centre is not None:
            score += (q.sum(-2, dtype=torch.float32) * centre.squeeze(-2).float()).sum(-1)
        means["entropy"] = (lse.mean(-1) - score * (scale / scope.queries)).flatten()
    grid = scope.grid if "rms_distance" in plan.made else None
    square = sums = None
    if grid and grid.count == scope.queries == scope.keys:
        square, sums = _mean_square_distance(q, k, lse, scale, grid)
    elif grid:
        image = slice(grid.start, grid.start + grid.count)
        square = _mean_square_distance(k[:, :, image], q[:, :, image], None, scale, grid)[0]
    if square is not None:
        means["rms_distance"] = square.flatten()
    if sums is None and (plan.received or plan.columns):
        sums = attention_lse(k, q, k.new_zeros(1).expand_as(q), -lse, scale)[1]
    share = None if sums is None else sums.flatten(0, 1).exp() / scope.queries
    return Evidence(lse.flatten(0, 1), means, share)


_WAYS = {"rows": evidence_of_rows, "fused": _fused_evidence, "tiles": tiled_evidence}


def _mean_square_distance(
    q: Tensor, k: Tensor, lse: Tensor | None, scale: float, grid: TokenGrid
) -> tuple[Tensor, Tensor]:
    """Mean square distance (B, H), and the log-sum-exp (B, H, M) of the swapped call.

    With `lse` the readers `q` are the keys of the call, weighted as the map weights them. Without
    it every row of the call counts the same; swap q and k to average over the rows of the map.
    """
    bias = None if lse is None else -lse
    width = q.shape[-1]
    places = lines(grid.height, grid.width, q.dtype, q.device).split(width, dim=-1)
    aparts = squared_distances_to_lines(grid.height, grid.width, q.device).split(width, dim=-1)
    square = total = lse_of_keys = q.new_zeros((), dtype=torch.float32)
    for place, apart in zip(places, aparts, strict=True):  # (N, g) and (M, g), as many as fit
        columns = place.shape[-1]
        values = F.pad(place, (0, width - columns)).expand_as(q)
        found, lse_of_keys = attention_lse(k, q, values, bias, scale)
        share = found[..., :columns].float()  # (B, H, M, g)
        if lse is not None:
            share.mul_(lse_of_keys.exp().unsqueeze(-1))
        total = total + share.sum((-1, -2))
        square = square + share.mul_(apart).sum((-1, -2))
    # Every query lies in one column and in one row: the total counts the mass twice.
    return square * 2 / total, lse_of_keys


def _common_offset(k: Tensor) -> Tensor:
    """What the keys have in common, (B, H, 1, K), zero in the channels where they have little.

    A large offset costs the output of the kernel its low bits. Subtracting is exact in floating
    point while numbers lie within a factor of two; elsewhere it would round the keys anew.
    """
    sample = k[..., :: max(1, k.shape[-2] // CENTRE_SAMPLE), :]
    low, high = sample.amin(-2, keepdim=True), sample.amax(-2, keepdim=True)
    near = (2 * low > high) & (low > 0) | (2 * high < low) & (high < 0)
    return torch.where(near, sample.mean(-2, keepdim=True), 0.0)
