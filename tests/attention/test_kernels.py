import os
import stat
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from ditscope.attention import stats
from ditscope.attention.kernels import compiler, cpu, rows
from ditscope.attention.kernels.sums import Wanted
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.metrics.scope import Scope
from ditscope.attention.operands import Operands, operands
from ditscope.attention.seam import AttentionCall
from ditscope.attention.stats import measure
from ditscope.core.sites import TokenGrid
from tests.attention.reference import qkv
from tests.attention.test_metrics import GRID, JOINT, ROWS, SEGMENTS, wrong

needs_compiler = pytest.mark.skipif(not cpu.available(), reason="no C++ compiler here")


@pytest.fixture
def by_rows(monkeypatch):
    """Whatever a kernel does not serve is an error."""
    monkeypatch.setattr(stats, "_WAYS", {"rows": rows.evidence_of_rows})


def is_exact(call, grid=None, segments=(), *, names=ROWS, **options):
    assert wrong(call, grid, segments, names=names, **options) == {}
    names = tuple(name for name in names if not name.startswith("mass_"))
    assert wrong(call, grid, segments, names=names, tokens=True, **options) == {}


@needs_compiler
@pytest.mark.parametrize("dtype", rows.DTYPES)
@pytest.mark.parametrize("width", [1, 8, 33, 64, 72, 128])
def test_every_metric_equals_the_full_matrix(by_rows, dtype, width):
    """Also in bfloat16: what is multiplied is rounded already, what is summed is float32."""
    assert {"entropy", "mean_distance", "received_max", "mass_text"} < set(ROWS)
    is_exact(AttentionCall(*qkv(queries=32, width=width, dtype=dtype)), JOINT, SEGMENTS)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "grid",
    [
        TokenGrid(height=1, width=1),
        TokenGrid(height=1, width=7),
        TokenGrid(height=3, width=11),
        TokenGrid(height=16, width=16),
        TokenGrid(height=17, width=19),  # two tasks for a head
        TokenGrid(frames=3, height=2, width=5),
    ],
)
def test_grids(by_rows, dtype, grid):
    is_exact(AttentionCall(*qkv(queries=grid.count, width=72, heads=3, dtype=dtype)), grid)


@needs_compiler
@pytest.mark.parametrize(("queries", "keys"), [(1, 40), (40, 1), (33, 31), (300, 5)])
def test_unequal_lengths(by_rows, queries, keys):
    is_exact(AttentionCall(*qkv(queries=queries, keys=keys, width=24)))


@needs_compiler
@pytest.mark.parametrize("size", [0.0, 0.01, 3.0])
def test_even_and_peaked(by_rows, size):
    is_exact(AttentionCall(*qkv(size=size, heads=3)), GRID)


@needs_compiler
def test_huge_logits(by_rows):
    """Scores of some thousand: float32 rounds them by 1e-4, and no better can be had from them."""
    is_exact(AttentionCall(*qkv(size=30.0, heads=3)), GRID, bound=2e-4)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_far_below_the_text(by_rows, dtype):
    """The image gets exp(-200) of the attention; where in the image is still told exactly."""
    q, k, v = (each.clone() for each in qkv(queries=32, width=16))
    q[..., 0], k[..., 0] = 4.0, 0.0
    k[:, :, :5, 0] = 200.0
    names = tuple(name for name in ROWS if "frequency" not in name)  # of shares that are zero
    call = AttentionCall(*(each.to(dtype) for each in (q, k, v)))
    is_exact(call, JOINT, SEGMENTS, names=names, bound=5e-5)  # float32 rounds scores of 200 by 1e-5


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "expanded", "transposed", "strided", "offset"])
def test_layouts(by_rows, dtype, layout):
    change = {
        "contiguous": lambda x: x.contiguous(),
        "expanded": lambda x: x[:1, :1].expand_as(x),
        "transposed": lambda x: x.mT.contiguous().mT,
        "strided": lambda x: torch.stack([x, x], -1)[..., 0],
        "offset": lambda x: torch.cat([x, x], -1)[..., 3 : 3 + x.shape[-1]],
    }[layout]
    q, k, v = (change(each) for each in qkv(width=20, dtype=dtype))
    is_exact(AttentionCall(q, k, v, scale=0.3), GRID)


@needs_compiler
def test_nothing_beyond_the_operands_is_read(by_rows):
    """What lies in memory beside the channels and tokens of a head is not finite here."""
    whole = torch.full((2, 40, 3, 48), torch.nan, dtype=torch.bfloat16)
    q, k = (whole.clone()[:, 3:35, 1:2, 5:43].transpose(1, 2) for _ in "qk")
    for each, other in zip((q, k), qkv(heads=1, queries=32, width=38), strict=False):
        each.copy_(other)
    found = measure(Operands(q, k, 0.2), plan_of(ROWS), JOINT, SEGMENTS).heads
    wanted = measure(Operands(q.clone(), k.clone(), 0.2), plan_of(ROWS), JOINT, SEGMENTS).heads
    assert all(torch.equal(found[name], wanted[name]) for name in ROWS)
    assert all(value.isfinite().all() for value in found.values())


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_do_not_depend_on_threads(dtype):
    grid = TokenGrid(height=18, width=18)
    attention = operands(AttentionCall(*qkv(queries=grid.count, width=72, dtype=dtype)))
    names = ("entropy", "participation", "rms_distance", "centroid_offset", "received_max")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(measure(attention, plan_of(names), grid).heads)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in names)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_under_another_default_dtype(by_rows, dtype):
    attention, grid = operands(AttentionCall(*qkv(queries=35))), TokenGrid(height=5, width=7)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        found = measure(attention, plan_of(["rms_distance", "received_max"]), grid).heads
    finally:
        torch.set_default_dtype(before)
    wanted = measure(attention, plan_of(["rms_distance", "received_max"]), grid).heads
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@needs_compiler
def test_what_no_kernel_serves():
    q, k, v = qkv()
    served = operands(AttentionCall(q, k, v))
    assert rows.serves(served)
    mask = torch.ones(24, 24, dtype=torch.bool)
    refused = [
        operands(AttentionCall(q, k, v, mask)),
        operands(AttentionCall(q, k, v, is_causal=True)),
        operands(AttentionCall(q, k, v, scale=-1.0)),
        operands(AttentionCall(q, k, v, scale=0.0)),
        operands(AttentionCall(q[:, :, :0], k, v)),
        operands(AttentionCall(q.double(), k.double(), v.double())),
        replace(served, q=q.to("meta"), k=k.to("meta")),
    ]
    assert not any(rows.serves(each) for each in refused)
    assert not rows.serves(served, JOINT)  # image tokens beyond the last one
    scope = Scope(2, 24, 24, torch.device("cpu"), GRID)
    for names, detail in ((["top_mass_4"], "heads"), (["mass_image"], "tokens")):
        assert stats.way(served, scope, plan_of(names, detail)) == "tiles"


LIES = {
    "base 2": lambda sums: replace(sums, w_log2_w=sums.w_log2_w * 0.6931),
    "another largest": lambda sums: replace(sums, largest=sums.largest + 0.01),
    "distance": lambda sums: replace(sums, square=sums.square * 1.01),
    "received": lambda sums: replace(sums, received=sums.received.flip(-1)),
    "nothing": lambda sums: replace(sums, w=sums.w * torch.nan),
}


@needs_compiler
@pytest.mark.parametrize("lie", LIES)
def test_kernel_that_lies_is_not_used(monkeypatch, lie):
    monkeypatch.setattr(rows, "_trusted", {})
    told = {"cpu": rows.Kernel(cpu.available, lambda *args: LIES[lie](cpu.sums(*args)))}
    monkeypatch.setattr(rows, "_KERNELS", told)
    attention = operands(AttentionCall(*qkv()))
    with pytest.warns(RuntimeWarning, match="not used for statistics"):
        assert not rows.serves(attention)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not rows.serves(attention)  # tried once, said once


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache with nothing in it, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compiler.SWITCH, raising=False)
    compiler.compiled.cache_clear()
    yield tmp_path / "ditscope" / "kernels"
    compiler.compiled.cache_clear()


def stand_in(folder, lines):
    """A program in the place of the compiler."""
    program = folder / "g++"
    program.write_text(f"#!{sys.executable}\n{lines}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(folder)


@needs_compiler
def test_compiled_once_and_kept(fresh, monkeypatch):
    assert compiler.compiled() is not None
    (library,) = fresh.iterdir()
    made = library.stat().st_mtime_ns
    compiler.compiled.cache_clear()
    assert compiler.compiled() is not None
    assert library.stat().st_mtime_ns == made
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DOTHER"))
    compiler.compiled.cache_clear()
    assert compiler.compiled() is not None
    assert len(list(fresh.iterdir())) == 2


@needs_compiler
@pytest.mark.parametrize("damage", [lambda _: b"no library", lambda old: old[: len(old) // 2]])
def test_damaged_library_is_made_anew(fresh, damage):
    assert compiler.compiled() is not None
    (library,) = fresh.iterdir()
    whole = library.read_bytes()
    library.unlink()  # not in place: it is open
    library.write_bytes(damage(whole))
    compiler.compiled.cache_clear()
    assert compiler.compiled() is not None
    assert library.read_bytes() == whole


def test_no_compiler_no_kernel(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler.compiled() is None and not fresh.exists()


def test_the_switch(fresh, monkeypatch):
    monkeypatch.setenv(compiler.SWITCH, "0")
    assert compiler.compiled() is None and not fresh.exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('this compiler is\\nbroken')", "this compiler is"),
        ("print('makes nothing')", "No such file"),
        ("import sys; print(file=sys.stderr); sys.exit(1)", "exit status 1"),
    ],
)
def test_compiler_that_fails_is_said_once(fresh, monkeypatch, tmp_path, program, said):
    monkeypatch.setenv("PATH", stand_in(tmp_path, program))
    with pytest.warns(RuntimeWarning, match=f"slower.*{said}"):
        assert compiler.compiled() is None
    assert compiler.compiled() is None
    assert list(fresh.iterdir()) == []


def test_compiler_that_never_ends(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "SECONDS", 0.2)
    monkeypatch.setenv("PATH", stand_in(tmp_path, "import time; time.sleep(60)"))
    with pytest.warns(RuntimeWarning, match="timed out"):
        assert compiler.compiled() is None


@needs_compiler
def test_several_processes_compile_at_once(fresh):
    code = "from ditscope.attention.kernels import cpu; assert cpu.available()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert len(list(fresh.iterdir())) == 1


@needs_compiler
def test_every_sum_that_was_not_wanted_costs_no_memory():
    attention = operands(AttentionCall(*qkv()))
    scope = Scope(2, 24, 24, torch.device("cpu"), GRID)
    assert cpu.sums(attention, scope, Wanted()).received is None
    assert cpu.sums(attention, scope, Wanted(received=True)).received.shape == (4, 24)
