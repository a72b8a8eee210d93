"""Watching changes nothing: one table of models and conditions, and a demand on every cell.

A way of running a network returns all that it computes: its output, and its gradients where it is
trained. Watched and unwatched, the bits must be the same, and so must the state of the random
numbers; every attention call must have been seen, on its grid; nothing may be left behind.
"""

import threading
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import ditscope as ds
from ditscope.attention.census import census
from ditscope.attention.metrics.registry import BRANCHES, STEPS, find
from ditscope.attention.seam import ATTENTION
from ditscope.core.statistics import DEFAULT_METRICS, STATISTICS
from ditscope.errors import NothingWatched
from tests.attention.zoo import MODELS, made

CANNOT = {
    ("our_dit", "checkpointed"): "has no checkpointing of its own",
    ("torch_composite", "checkpointed"): "has no checkpointing of its own",
    ("torch_composite", "by_the_flash_kernel"): "has dropout, which that kernel has not on a CPU",
}
DISPATCHED = ("diffusers_flux", "diffusers_wan")
"""Their attention goes through the backend switch of diffusers; others call the function."""


def forward(case):
    with torch.no_grad():
        return [case()]


def in_inference_mode(case):
    with torch.inference_mode():
        return [case().clone()]


def under_autocast(case):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return [case()]


def under_autocast_in_training(case):
    with torch.autocast("cpu", torch.bfloat16):
        return trained(case)


def by_the_math_kernel(case):
    with sdpa_kernel(SDPBackend.MATH):
        return forward(case)


def by_the_flash_kernel(case):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return forward(case)


def trained(case):
    """Output and gradients of one step of a training, with dropout where the model has it."""
    model = case.model.train()
    model.zero_grad()
    output = case()
    output.float().square().mean().backward()
    return [output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def checkpointed(case):
    """The backward pass computes every block again."""
    case.model.enable_gradient_checkpointing()
    return trained(case)


WAYS = (
    forward,
    in_inference_mode,
    under_autocast,
    under_autocast_in_training,
    by_the_math_kernel,
    by_the_flash_kernel,
    trained,
    checkpointed,
)


def run(way, case):
    """What is computed, and the random numbers that are left."""
    torch.manual_seed(1)
    return [*way(case), torch.random.get_rng_state()]


def check(plain, watched):
    assert len(plain) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert all(a.isfinite().all() for a in plain)


def check_seen(seen, case, metrics=DEFAULT_METRICS):
    assert [site.grid for site in seen.sites] == case.grids
    assert seen.not_seen == ()
    for name in metrics:
        values = seen.stats[name]
        where = [i for i, grid in enumerate(case.grids) if grid or name != "rms_distance"]
        assert values.isel(site=where).notnull().all(), name


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert torch._C._len_torch_function_stack() == 0
    assert F.scaled_dot_product_attention is ATTENTION


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # under autocast
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_in_every_way(model, way):
    if reason := CANNOT.get((model, way.__name__)):
        pytest.skip(reason)
    case = made(MODELS[model])
    plain = run(way, case)
    with ds.watch(case.model) as seen:
        watched = run(way, case)
    check(plain, watched)
    check_seen(seen, case)
    check(plain, run(way, case))  # and it is as it was
    if way in (trained, checkpointed, under_autocast_in_training):
        assert len(plain) > 10  # there were gradients to compare
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())


@pytest.mark.parametrize(
    ("dtype", "way"),
    [(torch.bfloat16, forward), (torch.float16, forward), (torch.bfloat16, trained)],
    ids=["bfloat16", "float16", "bfloat16-trained"],
)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_in_half_precision(model, dtype, way):
    case = made(MODELS[model], dtype)
    plain = run(way, case)
    with ds.watch(case.model) as seen:
        check(plain, run(way, case))
    check_seen(seen, case)


@pytest.fixture
def native():
    """The switch of a model moves that of the process as well: put it back."""
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend("native"):
        yield


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash"])
@pytest.mark.parametrize("model", DISPATCHED)
def test_every_backend_that_diffusers_can_be_switched_to(native, model, backend):
    case = made(MODELS[model])
    case.model.set_attention_backend(backend)
    plain = run(forward, case)
    with ds.watch(case.model) as seen:
        check(plain, run(forward, case))
    check_seen(seen, case)


def every_metric(case):
    """All that can have a value here."""
    with ds.watch(case.model) as seen:
        forward(case)
    sites = seen.sites
    alone = [name for name in STATISTICS if find(name).needs not in (STEPS, BRANCHES)]
    return [name for name in alone if any(STATISTICS[name].maximum(s) >= 0 for s in sites)]


@contextmanager
def watched_for_everything(case):
    with ds.watch(case.model, metrics=every_metric(case), detail="tokens", keep=["*"]) as seen:
        yield
    for index, site in enumerate(seen.sites):
        for name, values in seen.stats.isel(site=index).items():
            missing = not STATISTICS[name].maximum(site) >= 0
            assert values.isnull().all() if missing else values.notnull().all(), (name, site)
        rows = seen.rows(site.name, range(site.queries))
        assert rows.sum("key").values == pytest.approx(1, abs=1e-5)


@contextmanager
def watched_twice(case):
    with ds.watch(case.model) as outer, ds.watch(case.model) as inner:
        yield
    assert outer.stats.equals(inner.stats)


@contextmanager
def watched_again_and_again(case):
    for _ in range(3):
        with ds.watch(case.model):
            forward(case)
    with ds.watch(case.model):
        yield


@contextmanager
def after_a_failure(case):
    """An exception from the last attention of the first forward, in the same block."""
    last = case.model.get_submodule(census(case.model, *case.args, **case.kwargs)[-1].name)

    def fail(*_):
        raise KeyError("mine")

    with ds.watch(case.model) as seen:
        handle = last.register_forward_hook(fail)
        with pytest.raises(KeyError, match="mine"):
            forward(case)
        handle.remove()
        yield
    assert seen.stats.sizes["forward"] == 1


@contextmanager
def under_neutral_edits(case):
    with ds.edit(case.model, ds.Temperature(1), ds.AblateHeads(heads=[])), ds.watch(case.model):
        yield


@contextmanager
def under_edits_of_another_step(case):
    """The seam of the edits is there, and changes nothing in this forward."""
    with ds.edit(case.model, ds.Temperature(2, steps=1), ds.AblateHeads(layers=0, steps=1)):
        yield
        forward(case)


@contextmanager
def with_an_edit_that_ends_before(case):
    with ds.watch(case.model):
        with ds.edit(case.model, ds.Temperature(2)):
            forward(case)
        yield


WATCHES = (
    watched_for_everything,
    watched_twice,
    watched_again_and_again,
    after_a_failure,
    under_neutral_edits,
    under_edits_of_another_step,
    with_an_edit_that_ends_before,
)


@pytest.mark.parametrize("watched", WATCHES, ids=lambda watched: watched.__name__)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_under_every_watch(model, watched):
    case = made(MODELS[model])
    plain = run(forward, case)
    with watched(case):
        found = run(forward, case)
    check(plain, found)


@pytest.mark.parametrize("model", MODELS)
def test_an_edit_that_is_not_neutral_is_felt(model):
    """So that the bits above could have been others: every call reaches the output."""
    case = made(MODELS[model])
    plain = run(forward, case)[0]
    for layer in range(len(case.grids)):
        with ds.edit(case.model, ds.AblateHeads(layers=layer)):
            assert not torch.equal(plain, run(forward, case)[0]), layer


@pytest.mark.parametrize("model", ["our_dit", "diffusers_flux", "torch_composite"])
def test_a_watch_in_each_of_two_threads(model):
    """Two networks, each watched by a thread of its own, at the same time."""
    cases = [made(MODELS[model]) for _ in range(2)]
    cases[1].args = (2 * cases[1].args[0], *cases[1].args[1:])
    for case in cases:
        case.model.eval()  # random numbers are shared by threads
    results, start = [None, None], threading.Barrier(2, timeout=120)

    def one_thread(index):
        with ds.watch(cases[index].model) as seen:
            start.wait()
            outputs = [cases[index]().detach() for _ in range(3)]
        results[index] = outputs, seen.stats

    threads = [threading.Thread(target=one_thread, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for case, (outputs, stats) in zip(cases, results, strict=True):
        with ds.watch(case.model) as alone:
            plain = case().detach()
        assert all(torch.equal(plain, each) for each in outputs)
        assert stats.isel(forward=[2]).equals(alone.stats)
    assert not torch.equal(results[0][0][0], results[1][0][0])


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_a_backend_that_bypasses_the_call_is_named(native):
    """FlexAttention is no call of `scaled_dot_product_attention`: nothing must look like a pass."""
    case = made(MODELS["diffusers_flux"])
    with ds.watch(case.model) as seen:
        forward(case)
        with pytest.raises(NothingWatched, match="made 0 attention calls, the census expects 3"):
            case.model.set_attention_backend("flex")
            forward(case)
        assert seen.stats.sizes["forward"] == 1
    with pytest.raises(NothingWatched, match="look like attention: FluxAttention with FluxAttn"):
        with ds.watch(case.model):
            forward(case)
