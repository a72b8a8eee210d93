"""The kernels of a GPU: on one, if there is one, else in Triton's interpreter on the CPU."""

import importlib

import pytest
import torch

from ditscope.attention import stats
from ditscope.attention.kernels import rows
from ditscope.attention.kernels.sums import Wanted
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import Operands, operands
from ditscope.attention.seam import AttentionCall
from ditscope.attention.stats import measure
from ditscope.core.sites import TokenGrid
from tests.attention.reference import qkv
from tests.attention.test_metrics import GRID, JOINT, ROWS, SEGMENTS, wrong

pytest.importorskip("triton")
kernel = importlib.import_module("ditscope.attention.kernels.triton_rows")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def by_triton(monkeypatch):
    """Whatever the kernel does not serve is an error."""
    monkeypatch.setattr(rows, "_trusted", {})
    told = {DEVICE.type: rows.Kernel(lambda: True, kernel.sums)}
    monkeypatch.setattr(rows, "_KERNELS", told)
    monkeypatch.setattr(stats, "_WAYS", {"rows": rows.evidence_of_rows})


def there(**options):
    return AttentionCall(*(each.to(DEVICE) for each in qkv(**options)))


def is_exact(call, grid=None, segments=(), *, bound=1e-5):
    assert wrong(call, grid, segments, names=ROWS, bound=bound) == {}


@pytest.mark.parametrize("dtype", rows.DTYPES)
def test_every_metric_equals_the_full_matrix(by_triton, dtype):
    """More keys than a block has, an image that is a part of them, a width that is no power."""
    grid = TokenGrid(height=9, width=7, start=5)
    is_exact(there(queries=70, width=72, heads=1, dtype=dtype), grid, SEGMENTS[:2])


@pytest.mark.parametrize("grid", [GRID, TokenGrid(frames=2, height=5, width=7)])
def test_grids(by_triton, grid):
    is_exact(there(queries=grid.count, rows=1), grid)


@pytest.mark.parametrize(("queries", "keys"), [(1, 66), (66, 1)])
def test_unequal_lengths(by_triton, queries, keys):
    is_exact(there(queries=queries, keys=keys, rows=1, heads=1))


@pytest.mark.parametrize(("size", "bound"), [(0.0, 1e-5), (3.0, 1e-5), (30.0, 2e-4)])
def test_even_peaked_and_huge(by_triton, size, bound):
    is_exact(there(queries=24, rows=1, size=size), GRID, bound=bound)


def test_image_far_below_the_text(by_triton):
    q, k, v = (each.clone() for each in qkv(queries=32, rows=1, heads=1))
    q[..., 0], k[..., 0] = 4.0, 0.0
    k[:, :, :5, 0] = 200.0
    call = AttentionCall(*(each.to(DEVICE) for each in (q, k, v)))
    names = tuple(name for name in ROWS if "frequency" not in name)  # of shares that are zero
    assert wrong(call, JOINT, SEGMENTS, names=names, bound=5e-5) == {}


def test_equals_fused_calls(monkeypatch, by_triton):
    """The reference on the same device."""
    attention = operands(there(queries=24, width=32))
    names = [name for name in ROWS if plan_of([name]).fusable]
    by_kernel = measure(attention, plan_of(names), GRID)
    monkeypatch.setattr(stats, "_WAYS", {"rows": stats._fused_evidence})
    by_calls = measure(attention, plan_of(names), GRID)
    torch.testing.assert_close(by_kernel.lse, by_calls.lse, rtol=0, atol=2e-5)
    for name, value in by_kernel.heads.items():
        torch.testing.assert_close(
            value, by_calls.heads[name], rtol=1e-4, atol=2e-5, equal_nan=True
        )


def test_columns_sum_to_the_queries():
    call = there(queries=70, keys=40, rows=1, heads=1)
    scope = Scope(1, 70, 40, DEVICE)
    found = kernel.sums(Operands(call.q, call.k, 0.2), scope, Wanted(received=True))
    assert found.received.sum().item() == pytest.approx(70, rel=1e-5)
    assert kernel.sums(Operands(call.q, call.k, 0.2), scope, Wanted()).received is None
