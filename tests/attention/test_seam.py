import threading

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
