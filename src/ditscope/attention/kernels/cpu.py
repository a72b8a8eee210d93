"""The kernel of the CPU, `rows.cpp`, as a function of tensors.

Shapes: B rows, H heads, T rows times heads, N queries, M keys, K head width, I image keys, c tasks
of a head.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from ditscope.attention.kernels.compiler import compiled
from ditscope.attention.kernels.sums import Sums, Wanted
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import Operands
from ditscope.attention.tables import token_places

CHUNK, MOST_TASKS = 256, 4
"""Queries of one head that a task has at least, and how many tasks a head makes at most."""

WORKSPACE = 2**24
"""Floats that all threads together may take; long videos on many cores leave some of them idle."""


class Request(ctypes.Structure):
    """What the kernel is asked; its fields are those of `Request` in `rows.cpp`, in order."""

    _fields_ = [
        *((name, c_void_p) for name in ("q", "k")),
        *((name, c_int64 * 3) for name in ("q_stride", "k_stride")),
        *((name, c_int64) for name in ("heads", "tasks", "chunk", "queries", "keys", "width")),
        *((name, c_int64) for name in ("threads", "workspace_stride")),
        ("scale", c_float),
        ("bfloat16", c_int32),
        *((name, c_int64) for name in ("image_start", "image_count", "axes")),
        *((name, c_void_p) for name in ("key_places", "query_places")),
        *((name, c_int32) for name in ("wants_square", "wants_centre")),
        *((name, c_int32) for name in ("wants_distance", "wants_received")),
        *((name, c_void_p) for name in ("workspace", "found", "received")),
    ]


def available() -> bool:
    """Whether the kernel could be compiled here."""
    return compiled() is not None


def sums(attention: Operands, scope: Scope, wanted: Wanted) -> Sums:
    """The sums over keys of every query, by one pass over the scores.

    Args:
        attention: Without mask, with a positive scale and some tokens.
        scope: What its tokens are.
        wanted: What is made beside the sums that cost nothing more.
    """
    library = compiled()
    assert library is not None
    q, k = (_readable(each) for each in (attention.q, attention.k))
    batch, heads, queries, width = q.shape
    keys, total = k.shape[2], batch * heads
    chunk = max(CHUNK, -(-queries // MOST_TASKS))
    tasks = -(-queries // chunk)
    request = Request(q=q.data_ptr(), k=k.data_ptr(), scale=attention.scale)
    request.q_stride[:], request.k_stride[:] = q.stride()[:3], k.stride()[:3]
    request.heads, request.tasks, request.chunk = heads, total * tasks, chunk
    request.queries, request.keys, request.width = queries, keys, width
    request.bfloat16 = q.dtype == torch.bfloat16
    request.wants_square, request.wants_received = wanted.square, wanted.received
    if wanted.places and scope.grid:
        grid = scope.grid
        key_places, query_places = token_places(grid, queries, q.device)
        request.image_start, request.image_count = grid.start, grid.count
        request.axes = 3 if grid.frames > 1 else 2
        request.key_places, request.query_places = key_places.data_ptr(), query_places.data_ptr()
        request.wants_centre, request.wants_distance = wanted.centre, wanted.distance
    found = q.new_empty(10, total, queries, dtype=torch.float32)
    received = q.new_empty(total, tasks, keys, dtype=torch.float32) if wanted.received else None
    request.workspace_stride = library.ditscope_workspace(ctypes.byref(request))
    together = max(1, WORKSPACE // request.workspace_stride)
    request.threads = min(torch.get_num_threads(), total * tasks, together)
    workspace = q.new_empty(request.threads * request.workspace_stride, dtype=torch.float32)
    request.workspace, request.found = workspace.data_ptr(), found.data_ptr()
    request.received = None if received is None else received.data_ptr()
    library.ditscope_rows(ctypes.byref(request))
    if received is not None:
        received = received.squeeze(1) if tasks == 1 else received.sum(1)
    largest, w, w_log2_w, w_square, image, square, distance = found[:7].unbind()
    offset = found[7:]
    return Sums(largest, w, w_log2_w, w_square, image, square, distance, offset, received)


def _readable(tensor: Tensor) -> Tensor:
    """In a number type that the kernel reads, the channels of a token side by side."""
    if tensor.dtype != torch.float32 and not (tensor.dtype == torch.bfloat16 and _reads_bfloat16()):
        tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@lru_cache(maxsize=1)
def _reads_bfloat16() -> bool:
    """Only where the processor multiplies such numbers, in tiles."""
    library = compiled()
    return library is not None and bool(library.ditscope_reads_bfloat16())
