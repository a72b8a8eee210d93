import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ditscope.attention.seam import ATTENTION, Seam
from tests.attention.reference import Heads, Plain, qkv

SDPA = F.scaled_dot_product_attention


class Seen(list):
    """An observer that remembers."""

    def __call__(self, call, output):
        self.append((call, output))


@pytest.fixture
def seen():
    return Seen()


def attend_in_words(q, k, v, mask):
    return SDPA(query=q, key=k, value=v, attn_mask=mask, dropout_p=0.0, is_causal=False, scale=0.5)


def attend_in_order(q, k, v, mask):
    return SDPA(q, k, v, mask, 0.0, False, scale=0.5)


@pytest.mark.parametrize("attend", [attend_in_words, attend_in_order])
def test_arguments_under_one_signature(seen, attend):
    q, k, v = qkv()
    mask = torch.ones(24, 24, dtype=torch.bool)
    plain = attend(q, k, v, mask)
    with Seam(seen):
        output = attend(q, k, v, mask)
    [(call, shown)] = seen
    assert torch.equal(output, plain) and torch.equal(shown, plain)
    for argument, given in ((call.q, q), (call.k, k), (call.v, v), (call.attn_mask, mask)):
        assert argument.data_ptr() == given.data_ptr() and argument.stride() == given.stride()
    assert (call.scale, call.softmax_scale) == (0.5, 0.5)
    assert (call.dropout_p, call.is_causal, call.enable_gqa) == (0.0, False, False)


def test_default_scale(seen):
    q, k, v = qkv(width=16)
    with Seam(seen):
        SDPA(q, k, v)
    assert seen[0][0].softmax_scale == 0.25


def test_grouped_queries_and_causal(seen):
    q, _, _ = qkv(heads=4)
    _, k, v = qkv(heads=2)
    with Seam(seen):
        SDPA(q, k, v, is_causal=True, enable_gqa=True)
    assert seen[0][0].enable_gqa and seen[0][0].is_causal


def test_gradients_are_those_of_the_model(seen):
    model, x = Plain(), torch.randn(2, 6, 16)

    def gradients(context):
        model.zero_grad()
        with context:
            model(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients(torch.enable_grad())
    watched = gradients(Seam(seen))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    for call, output in seen:
        assert not any(x.requires_grad for x in (call.q, call.k, call.v, output))


def test_comes_off_after_an_exception(seen):
    q, k, v = qkv()
    with pytest.raises(KeyError), Seam(seen):
        raise KeyError
    with pytest.raises(RuntimeError), Seam(seen):
        SDPA(q, k[..., :3], v)
    SDPA(q, k, v)
    assert seen == []


def test_exception_of_the_observer_is_not_hidden():
    def observe(call, output):
        raise ZeroDivisionError

    q, k, v = qkv()
    with pytest.raises(ZeroDivisionError), Seam(observe):
        SDPA(q, k, v)


def test_inner_seam_sees_first():
    order = []
    q, k, v = qkv()
    with (
        Seam(lambda *_: order.append("outer")),
        Seam(lambda *_: order.append("inner")),
    ):
        SDPA(q, k, v)
        assert sorted(order) == ["inner", "outer"]
    SDPA(q, k, v)
    assert len(order) == 2


def test_other_threads_are_not_seen(seen):
    q, k, v = qkv()
    with Seam(seen):
        thread = threading.Thread(target=SDPA, args=(q, k, v))
        thread.start()
        thread.join()
    assert seen == []


def test_autocast_is_seen_as_the_kernel_sees(seen):
    """The mode is shown float32, the kernel bfloat16; the observer computes in what it wants."""
    q, k, v = qkv()
    mask = torch.randn(24, 24)
    products = []

    def observe(call, output):
        seen(call, output)
        products.append(torch.ones(2, 2) @ torch.ones(2, 2))

    with torch.autocast("cpu", torch.bfloat16):
        plain = SDPA(q, k, v, mask)
        with Seam(observe):
            watched = SDPA(q, k, v, mask)
    assert torch.equal(plain, watched) and watched.dtype == torch.bfloat16
    call, _ = seen[0]
    assert {x.dtype for x in (call.q, call.k, call.v, call.attn_mask)} == {torch.bfloat16}
    assert torch.equal(SDPA(call.q, call.k, call.v, call.attn_mask), plain)
    assert products[0].dtype == torch.float32


def test_autocast_leaves_float64_and_bool_alone(seen):
    q, k, v = (each.double() for each in qkv())
    with torch.autocast("cpu", torch.bfloat16), Seam(seen):
        SDPA(q, k, v, torch.ones(24, 24, dtype=torch.bool))
    call, _ = seen[0]
    assert call.q.dtype == torch.float64 and call.attn_mask.dtype == torch.bool


class Composite(nn.Module):
    """Attention of torch's own module, out of its fused path."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


def test_inside_a_composite_function(seen):
    model, x = Composite(), torch.randn(2, 6, 16)
    plain = model(x)
    with Seam(seen):
        watched = model(x)
        assert F.scaled_dot_product_attention is ATTENTION
    assert torch.equal(plain, watched)
    assert [call.q.shape for call, _ in seen] == [(2, 4, 6, 4)]


def test_composite_under_nested_seams(seen):
    model, x = Composite(), torch.randn(2, 6, 16)
    inner = Seen()
    with Seam(seen), Seam(inner):
        model(x)
    assert len(seen) == len(inner) == 1


def test_composite_that_fails_leaves_nothing_behind(seen):
    model = Composite()
    with pytest.raises(AssertionError, match="does not match"), Seam(seen):
        model.attn(torch.randn(2, 6, 16), torch.randn(2, 6, 16), torch.randn(2, 5, 16))
    assert F.scaled_dot_product_attention is ATTENTION
    model(torch.randn(2, 6, 16))
    assert seen == []


def test_composites_in_two_threads_at_once(seen):
    """Each thread's seam is shown its own calls; afterwards the function is the original."""
    model = Composite()
    both_inside = threading.Barrier(2, timeout=30)
    counts = {}

    def run(name, tokens):
        mine = Seen()

        def observe(call, output):
            both_inside.wait()  # neither leaves the composite before both are in it
            mine(call, output)

        with Seam(observe):
            model(torch.randn(2, tokens, 16))
        counts[name] = [call.q.shape[2] for call, _ in mine]

    threads = [threading.Thread(target=run, args=args) for args in (("a", 5), ("b", 7))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {"a": [5], "b": [7]}
    assert F.scaled_dot_product_attention is ATTENTION


def test_checkpointed_forward_is_seen_once(seen):
    """The backward pass runs it again, after the block."""
    model, x = Heads(), torch.randn(2, 6, 16, requires_grad=True)
    with Seam(seen):
        output = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    output.sum().backward()
    assert len(seen) == 1


def doubled(call):
    return replace(call, v=2 * call.v)


def shifted(call):
    return replace(call, v=call.v + 1)


def test_change_is_what_runs_and_what_is_seen(seen):
    q, k, v = qkv()
    mask = torch.randn(24, 24)
    expected = SDPA(q, k, 2 * v, mask, scale=0.5)
    with Seam(seen, change=doubled):
        output = SDPA(q, k, v, mask, 0.0, False, scale=0.5)
    [(call, shown)] = seen
    assert torch.equal(output, expected) and torch.equal(shown, expected)
    assert torch.equal(call.v, 2 * v) and call.q.data_ptr() == q.data_ptr() and call.scale == 0.5


def test_call_that_is_left_alone_keeps_its_very_arguments():
    given = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            given.append((func, args, kwargs))
            return torch.zeros(1)

    q, k, v = (each.as_subclass(Watched) for each in qkv())
    with Seam(change=lambda call: call):
        SDPA(q, key=k, value=v, dropout_p=0.0)
    [(func, args, kwargs)] = given
    assert func is SDPA and args[0] is q and len(args) == 1
    assert list(kwargs) == ["key", "value", "dropout_p"] and kwargs["key"] is k


def test_changes_nest_from_the_inside():
    q, k, v = qkv()
    with Seam(change=doubled), Seam(change=shifted):
        output = SDPA(q, k, v)
    torch.testing.assert_close(output, SDPA(q, k, 2 * (v + 1)))


@pytest.mark.parametrize("order", ["oxx", "xox", "xxo"])
def test_every_observer_sees_what_the_kernel_sees(order):
    """`o` observes, `x` changes, outermost first; in a composite as well."""
    model, x = Composite(), torch.randn(2, 6, 16)
    seen, plain = Seen(), Seen()
    with Seam(plain):
        model(x)
    changes = iter([doubled, shifted])
    with ExitStack() as stack:
        for kind in order:
            stack.enter_context(Seam(seen) if kind == "o" else Seam(change=next(changes)))
        model(x)
    [(call, output)], [(before, _)] = seen, plain
    torch.testing.assert_close(call.v, 2 * (before.v + 1))
    torch.testing.assert_close(output, SDPA(call.q, call.k, call.v))
    assert F.scaled_dot_product_attention is ATTENTION


def test_observers_within_a_change_come_and_go(seen):
    """Equal ones, in turn, and one that ends by an exception."""
    q, k, v = qkv()
    other = Seen()
    with Seam(change=doubled) as changing:
        with Seam(seen), Seam(other):
            SDPA(q, k, v)
        with pytest.raises(KeyError), Seam(other):
            raise KeyError
        SDPA(q, k, v)
        assert changing._served == []
    with Seam(seen):  # no change beyond it any more
        SDPA(q, k, v)
    assert [len(other), len(seen)] == [1, 2]
    assert torch.equal(seen[1][0].v, v) and torch.equal(seen[0][0].v, 2 * v)
