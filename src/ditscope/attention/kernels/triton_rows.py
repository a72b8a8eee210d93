"""The kernels of a GPU, in Triton: sums over the keys of each query, and what each key receives.

The first makes one pass over the scores of a call with running sums: when a larger score is met,
what was summed is scaled down to it. The second needs the log-sum-exp, so it makes the scores once
more, with the keys outside; no sum is made by atomic additions, so all are the same in every run.

Source of the running sums: Milakov and Gimelshein 2018, arXiv:1805.02867, with the entropy's sum
carried along: sum w (s - m) becomes alpha (sum + (m - m') W) when the largest score m becomes m'.

Shapes: B rows, H heads, T rows times heads, N queries, M keys, K head width, I image keys; n and m
of a block.
"""

# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false
# pyright: reportCallIssue=false
# A kernel is not quite Python, and Triton is not everywhere.

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ditscope.attention.kernels.sums import Sums, Wanted
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import Operands
from ditscope.attention.tables import token_places

BLOCK = 64  # queries and keys of a block
SUMS = 10


@triton.jit
def _scores(  # noqa: PLR0913 - pointers, strides and sizes
    q, keys_at, k_token, k_first, keys, width, factor, M: tl.constexpr, K: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Scores (n, m) in powers of two, minus infinity beyond the last key."""
    key, channel = k_first + tl.arange(0, M), tl.arange(0, K)
    inside = (key[:, None] < keys) & (channel[None, :] < width)
    k = tl.load(keys_at + key[:, None] * k_token + channel[None, :], mask=inside, other=0.0)
    if WIDEN:
        q, k = q.to(tl.float32), k.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
    return tl.where(key[None, :] < keys, scores, float("-inf"))


@triton.jit
def _weights(scores, largest):
    """The new largest score (n,), what the sums so far are scaled by, and the weights (n, m)."""
    new = tl.maximum(largest, tl.max(scores, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)  # nothing was seen yet
    return new, tl.exp2(largest - safe), tl.exp2(scores - safe[:, None])


@triton.jit
def _rows(  # noqa: PLR0913 - pointers, strides and sizes
    q_at, k_at, places_of_keys, places_of_queries, found, q_row, q_head, q_token, k_row, k_head,
    k_token, heads, queries, keys, width, factor, start, count, total,
    GRID: tl.constexpr, WHOLE: tl.constexpr, DISTANCE: tl.constexpr, N: tl.constexpr,
    M: tl.constexpr, K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    token, channel = tl.program_id(1) * N + tl.arange(0, N), tl.arange(0, K)
    real = token < queries
    q_at += (t // heads) * q_row + (t % heads) * q_head
    k_at += (t // heads) * k_row + (t % heads) * k_head
    inside = real[:, None] & (channel[None, :] < width)
    q = tl.load(q_at + token[:, None] * q_token + channel[None, :], mask=inside, other=0.0)
    largest = tl.full([N], float("-inf"), tl.float32)
    of_image = tl.full([N], float("-inf"), tl.float32)
    zero = tl.zeros([N], tl.float32)
    w, log_w, square_w, image, square, distance = zero, zero, zero, zero, zero, zero
    frame, row, column = zero, zero, zero
    if GRID:
        frame_of = tl.load(places_of_queries + token, mask=real, other=0.0)
        row_of = tl.load(places_of_queries + queries + token, mask=real, other=0.0)
        column_of = tl.load(places_of_queries + 2 * queries + token, mask=real, other=0.0)
    for first in range(0, keys, M):
        scores = _scores(q, k_at, k_token, first, keys, width, factor, M, K, WIDEN)
        new, scale, weight = _weights(scores, largest)
        below = scores - new[:, None]
        below = tl.where(scores == float("-inf"), 0.0, below)
        fallen = tl.where(largest == float("-inf"), 0.0, largest - new)
        log_w = scale * (log_w + fallen * w) + tl.sum(weight * below, 1)
        w = scale * w + tl.sum(weight, 1)
        square_w = scale * scale * square_w + tl.sum(weight * weight, 1)
        largest = new
        if GRID:
            place = first + tl.arange(0, M) - start
            there = (place >= 0) & (place < count)
            if not WHOLE:  # the image may lie so far below the rest that its weights are lost
                scores = tl.where(there[None, :], scores, float("-inf"))
                of_image, scale, weight = _weights(scores, of_image)
            later = tl.load(places_of_keys + place, mask=there, other=0.0)[None, :]
            down = tl.load(places_of_keys + count + place, mask=there, other=0.0)[None, :]
            right = tl.load(places_of_keys + 2 * count + place, mask=there, other=0.0)[None, :]
            later, down = later - frame_of[:, None], down - row_of[:, None]
            right = right - column_of[:, None]
            apart = later * later + down * down + right * right
            image = scale * image + tl.sum(weight, 1)
            square = scale * square + tl.sum(weight * apart, 1)
            frame = scale * frame + tl.sum(weight * later, 1)
            row = scale * row + tl.sum(weight * down, 1)
            column = scale * column + tl.sum(weight * right, 1)
            if DISTANCE:
                distance = scale * distance + tl.sum(weight * tl.sqrt(apart), 1)
    at = found + t * queries + token
    tl.store(at, largest * 0.6931471805599453, mask=real)
    tl.store(at + total, w, mask=real)
    tl.store(at + 2 * total, log_w, mask=real)
    tl.store(at + 3 * total, square_w, mask=real)
    if GRID:
        tl.store(at + 4 * total, image, mask=real)
        tl.store(at + 5 * total, square, mask=real)
        tl.store(at + 6 * total, distance, mask=real)
        tl.store(at + 7 * total, frame, mask=real)
        tl.store(at + 8 * total, row, mask=real)
        tl.store(at + 9 * total, column, mask=real)


@triton.jit
def _received(  # noqa: PLR0913 - pointers, strides and sizes
    q_at, k_at, lse, received, q_row, q_head, q_token, k_row, k_head, k_token, heads, queries,
    keys, width, factor, N: tl.constexpr, M: tl.constexpr, K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    first, channel = tl.program_id(1) * M, tl.arange(0, K)
    q_at += (t // heads) * q_row + (t % heads) * q_head
    k_at += (t // heads) * k_row + (t % heads) * k_head
    total = tl.zeros([M], tl.float32)
    for start in range(0, queries, N):
        token = start + tl.arange(0, N)
        inside = (token[:, None] < queries) & (channel[None, :] < width)
        q = tl.load(q_at + token[:, None] * q_token + channel[None, :], mask=inside, other=0.0)
        scores = _scores(q, k_at, k_token, first, keys, width, factor, M, K, WIDEN)
        norm = tl.load(lse + t * queries + token, mask=token < queries, other=float("inf"))
        total += tl.sum(tl.exp2(scores - norm[:, None]), 0)
    key = first + tl.arange(0, M)
    tl.store(received + t * keys + key, total, mask=key < keys)


def sums(attention: Operands, scope: Scope, wanted: Wanted) -> Sums:
    """See `ditscope.attention.kernels.cpu.sums`."""
    with torch.cuda.device_of(attention.q):  # kernels start on the current device
        return _sums(attention, scope, wanted)


def _sums(attention: Operands, scope: Scope, wanted: Wanted) -> Sums:
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (attention.q, attention.k))
    batch, heads, queries, width = q.shape
    keys, rows = k.shape[2], batch * heads
    grid = scope.grid if wanted.places else None
    key_places = query_places = q.new_empty(1, dtype=torch.float32)
    if grid:
        key_places, query_places = token_places(grid, queries, q.device)
    found = q.new_zeros(SUMS, rows, queries, dtype=torch.float32)
    strides = (*q.stride()[:3], *k.stride()[:3])
    sizes = (heads, queries, keys, width, attention.scale / math.log(2))
    blocks = {"N": BLOCK, "M": BLOCK, "K": max(16, triton.next_power_of_2(width))}
    blocks["WIDEN"] = not q.is_cuda  # Triton's interpreter has no product of bfloat16
    start, count = (grid.start, grid.count) if grid else (0, 0)
    _rows[(rows, triton.cdiv(queries, BLOCK))](
        q, k, key_places, query_places, found, *strides, *sizes, start, count, rows * queries,
        GRID=grid is not None, WHOLE=count == keys, DISTANCE=wanted.distance, **blocks,
    )  # fmt: skip
    received = None
    if wanted.received:
        received = q.new_empty(rows, keys, dtype=torch.float32)
        lse = found[0] / math.log(2) + found[1].log2()
        _received[(rows, triton.cdiv(keys, BLOCK))](q, k, lse, received, *strides, *sizes, **blocks)
    largest, w, w_log2_w, w_square, image, square, distance = found[:7].unbind()
    offset = found[7:]
    return Sums(largest, w, w_log2_w, w_square, image, square, distance, offset, received)
