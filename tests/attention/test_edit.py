"""Blocks of `edit` around models: what they change, what they leave, and that they end."""

import threading
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
import xarray
from torch import nn
from torch.utils.checkpoint import checkpoint

import ditscope as ds
from ditscope.attention.edits.base import Edit
from ditscope.attention.edits.edit import is_edited
from ditscope.attention.seam import ATTENTION, Seam
from ditscope.errors import BadRequest, NothingWatched
from tests.attention.reference import HandWrittenAttention, Heads, Plain, qkv, tiny_dit
from tests.attention.zoo import diffusers_dit, made, our_dit, torch_composite

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
SHARP = ds.Temperature(0.5)


class Shifted(Edit):
    """Adds to the queries of the first head: does not commute with a temperature."""

    kind: Literal["shifted"] = "shifted"

    def change(self, call, heads):
        return replace(call, q=call.q + 1.0)


@pytest.fixture
def model():
    return Plain()


@pytest.fixture(autouse=True)
def clean():
    """No mode and no composite is left behind by any test."""
    yield
    assert torch._C._len_torch_function_stack() == 0
    assert F.scaled_dot_product_attention is ATTENTION


def hooks(model):
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def by_hand(model, x, temperature=lambda layer, head: 1.0, ablated=()):
    """`Plain` in float64 with attention written out."""
    x = x.double()
    for layer, part in enumerate((model.first, model.second)):
        weight, bias = part.qkv.weight.double(), part.qkv.bias.double()
        q, k, v = (x @ weight.T + bias).view(*x.shape[:-1], 3, 2, 8).permute(2, 0, 3, 1, 4)
        outputs = []
        for head in range(2):
            scores = q[:, head] @ k[:, head].mT / 8**0.5 / temperature(layer, head)
            outputs.append(scores.softmax(-1) @ v[:, head] * ((layer, head) not in ablated))
        attended = torch.cat(outputs, -1)
        x = x + attended if layer == 0 else attended
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [our_dit, diffusers_dit, torch_composite])
def test_neutral_edits_leave_every_bit(make, dtype):
    case = made(make, dtype)
    model = case.model
    neutral = (ds.Temperature(1.0), ds.AblateHeads(heads=[]), ds.Temperature(3, layers=()))
    seed = torch.random.get_rng_state()
    plain = case()
    outputs = []
    for edits in (neutral, [*neutral, ds.Temperature(3, steps=[1]), ds.AblateHeads(steps=1)]):
        with ds.edit(model, *edits):
            torch.random.set_rng_state(seed)
            outputs.append(case())
            torch.random.set_rng_state(seed)
            outputs.append(case())
    assert [torch.equal(plain, each) for each in outputs] == [True, True, True, False]
    assert hooks(model) == []


@pytest.mark.parametrize("make", [our_dit, diffusers_dit, torch_composite])
def test_a_seam_that_changes_one_call_leaves_the_others(make):
    """Up to the edited layer, all is as it was."""
    case = made(make)
    model = case.model
    seed = torch.random.get_rng_state()
    with ds.watch(model, keep=["*"]) as plain:
        case()
    torch.random.set_rng_state(seed)
    last = plain.sites[-1]
    with (
        ds.watch(model, keep=["*"]) as edited,
        ds.edit(model, ds.Temperature(2, layers=last.index)),
    ):
        case()
    before, after = plain.stats["entropy"], edited.stats["entropy"]
    earlier = [site.name for site in plain.sites[:-1]]
    assert before.sel(site=earlier).equals(after.sel(site=earlier))
    scores = plain.rows(last.name, 0).values ** 0.5
    expected = scores / scores.sum(-1, keepdims=True)
    assert edited.rows(last.name, 0).values == pytest.approx(expected, abs=1e-5)


def test_against_the_whole_model_by_hand(model):
    edits = (
        ds.Temperature(1.3, layers=0),
        ds.Temperature(3, heads=1),
        ds.AblateHeads(layers=[1], heads=0),
    )
    with torch.no_grad(), ds.edit(model, *edits):
        output = model(X)
    temperature = lambda layer, head: (1.3 if layer == 0 else 1) * (3 if head == 1 else 1)
    expected = by_hand(model, X, temperature, {(1, 0)})
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(model(X), Plain()(X))


@pytest.mark.parametrize("order", ["watch outside", "watch inside"])
@pytest.mark.parametrize("make", [our_dit, torch_composite])
def test_a_watch_sees_the_attention_as_edited(make, order):
    case = made(make)
    model = case.model
    seed = torch.random.get_rng_state()
    with ds.watch(model, keep=["*"]) as plain:
        case()
    torch.random.set_rng_state(seed)
    seen, edited = ds.watch(model, keep=["*"]), ds.edit(model, ds.Temperature(2.0, heads=0))
    first, second = (seen, edited) if order == "watch outside" else (edited, seen)
    with first, second:
        case()
    name = plain.sites[0].name  # later layers have other inputs
    root = plain.rows(name, range(4)).values ** 0.5
    expected = plain.rows(name, range(4)).values.copy()
    expected[:, 0] = (root / root.sum(-1, keepdims=True))[:, 0]
    assert seen.rows(name, range(4)).values == pytest.approx(expected, abs=1e-5)
    assert float(seen.stats["entropy"][0, 0, 0, 0]) > float(plain.stats["entropy"][0, 0, 0, 0])


def test_a_watch_of_a_part_sees_the_attention_as_edited(model):
    """The part is watched from within the edited forward."""
    with ds.watch(model.first) as plain:
        model(X)
    with ds.edit(model, ds.Temperature(2)), ds.edit(model, ds.Temperature(3)):
        with ds.watch(model.first) as inside:
            model(X)
    with ds.watch(model.first) as outside, ds.edit(model.first, ds.Temperature(6)):
        model(X)
    torch.testing.assert_close(inside.stats["entropy"].values, outside.stats["entropy"].values)
    assert (inside.stats["entropy"] > plain.stats["entropy"]).all()


def test_order_is_the_order_of_the_edits(model):
    def output(*edits):
        with ds.edit(model, *edits):
            return model(X)

    hot = ds.Temperature(4, heads=[0, 1])
    some = ds.Temperature(4, heads=0)
    one_way, other_way = output(Shifted(heads=0), some), output(some, Shifted(heads=0))
    assert not torch.allclose(one_way, other_way)
    with ds.edit(model, some), ds.edit(model, Shifted(heads=0)):  # the inner block acts first
        torch.testing.assert_close(model(X), one_way)
    with ds.edit(model, Shifted(heads=0)), ds.edit(model, some):
        torch.testing.assert_close(model(X), other_way)
    torch.testing.assert_close(output(hot), output(ds.Temperature(2), ds.Temperature(2)))


def test_gradients_are_those_of_the_edited_model(model):
    edits = (ds.Temperature(1.5), ds.Temperature(2, heads=1), ds.AblateHeads(layers=1, heads=0))
    with ds.edit(model.train(), *edits):
        model(X).square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    temperature = lambda layer, head: 1.5 * (2 if head == 1 else 1)
    by_hand(model, X, temperature, {(1, 0)}).square().sum().backward()
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-4)


def test_gradients_after_inference():
    """Nothing that was made under inference mode is kept for a training."""
    model = Plain()
    with ds.edit(model, ds.Temperature(2, heads=0), ds.AblateHeads(heads=1)):
        with torch.inference_mode():
            model(X)
        model(X).sum().backward()
    assert model.first.qkv.weight.grad is not None


class Checkpointed(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.inner, self.arguments = Plain(), arguments

    def forward(self, x):
        return checkpoint(self.inner, x, **self.arguments)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in the census
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_attention_is_refused_where_it_would_be_computed_again(reentrant):
    model, x = Checkpointed(use_reentrant=reentrant), X.clone().requires_grad_()
    with (
        pytest.raises(BadRequest, match=r"inner\.first runs under activation checkpointing"),
        ds.edit(model, SHARP),
    ):
        model(x)
    with torch.no_grad(), ds.edit(model, SHARP):
        edited = model(X.clone())
    with ds.edit(model.inner, SHARP):
        assert torch.equal(edited, model.inner(X))


def test_autocast():
    """The edit is made in the model's float32, the kernel gets bfloat16."""
    model, seen = Plain(), []
    with torch.autocast("cpu", torch.bfloat16), Seam(lambda call, output: seen.append(call)):
        with ds.edit(model, ds.Temperature(1.3, heads=0)):
            edited = model(X)
        plain = model(X)
        with ds.edit(model, ds.Temperature(1.0)):
            neutral = model(X)
    assert edited.dtype == torch.bfloat16 and torch.equal(plain, neutral)
    assert {call.q.dtype for call in seen} == {torch.bfloat16}
    with torch.no_grad():
        expected = by_hand(model, X, lambda layer, head: 1.3 if head == 0 else 1.0)
    assert (edited.double() - expected).abs().max() < 2e-2 < (plain.double() - expected).abs().max()


def test_grouped_queries():
    class Grouped(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    model, (q, _, _), (_, k, v) = Grouped(), qkv(heads=4), qkv(heads=2)
    plain = model(q, k, v)
    with (
        ds.watch(model) as seen,
        ds.edit(model, ds.AblateHeads(heads=1), ds.Temperature(2, heads=2)),
    ):
        edited = model(q, k, v)
    assert seen.sites[0].heads == 4
    torch.testing.assert_close(edited[:, [0, 3]], plain[:, [0, 3]])
    assert (edited[:, 1] == 0).all()
    scores = q[:, 2].double() @ k[:, 1].double().mT / 4 / 2
    torch.testing.assert_close(edited[:, 2].double(), scores.softmax(-1) @ v[:, 1].double())


def test_steps_of_a_bare_model_are_its_forwards(model):
    plain = model(X)
    with ds.edit(model, ds.AblateHeads(steps=[1, 2])):
        outputs = [model(X) for _ in range(4)]
    assert [torch.equal(each, plain) for each in outputs] == [True, False, False, True]
    assert (outputs[1] == 0).all()
    block = ds.edit(model, ds.AblateHeads(steps=2))
    with (
        pytest.raises(BadRequest, match=r"AblateHeads\.steps: .*no step 2; expected 0 to 1"),
        block,
    ):
        model(X), model(X)
    with block:  # counts from 0 again
        assert [torch.equal(model(X), plain) for _ in range(3)] == [True, True, False]


def test_other_sizes_of_input(model):
    with ds.edit(model, ds.Temperature(2, heads=0)):
        assert model(X).shape == (2, 6, 16) and model(X[:1, :4]).shape == (1, 4, 16)


def test_exception_takes_the_edit_off(model):
    plain = model(X)

    def fail(*_):
        raise KeyError

    with ds.edit(model, SHARP):
        edited = model(X)
        handle = model.second.register_forward_hook(fail)
        with pytest.raises(KeyError):
            model(X)
        handle.remove()
        assert torch._C._len_torch_function_stack() == 0
        assert torch.equal(model(X), edited)
    assert torch.equal(model(X), plain) and hooks(model) == []
    with pytest.raises(ZeroDivisionError), ds.edit(model, SHARP):
        raise ZeroDivisionError
    assert hooks(model) == []


def test_interrupt_takes_the_edit_off(model):
    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.second.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), ds.edit(model, SHARP), ds.watch(model):
        model(X)
    handle.remove()
    assert hooks(model) == [] and not is_edited(model)
    assert torch.equal(model(X), Plain()(X))


def test_threads(model):
    """Every thread that calls the model is edited; one that calls another model is not."""
    other, outputs = Plain(), {}
    plain = other(X)
    inside = threading.Barrier(2, timeout=60)

    def run(name, network):
        inside.wait()
        outputs[name] = network(X)

    with ds.edit(model, SHARP):
        expected = model(X)
        threads = [
            threading.Thread(target=run, args=each)
            for each in (("edited", model), ("plain", other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(outputs["edited"], expected) and not torch.equal(expected, plain)
    assert torch.equal(outputs["plain"], plain)


def test_compiled_without_a_graph_break():
    torch.compiler.reset()
    model, inputs = tiny_dit(depth=1)
    edits = (ds.Temperature(1.3), ds.Temperature(2, heads=0), ds.AblateHeads(heads=1))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        plain = compiled(*inputs)
        with ds.edit(model, *edits), ds.watch(model) as seen:
            expected = model(*inputs)
        with ds.edit(compiled, *edits), ds.watch(compiled) as seen_compiled:
            found = compiled(*inputs)
        assert torch.equal(compiled(*inputs), plain)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain)
    # Another path than the kernel's: a graph is made of stock operators.
    xarray.testing.assert_allclose(seen_compiled.stats, seen.stats, rtol=1e-5)


def test_fused_path_is_refused_and_not_left_unseen():
    model = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    with (
        torch.no_grad(),
        pytest.raises(NothingWatched, match="set_fastpath_enabled"),
        ds.edit(model, SHARP),
    ):
        model(X, X, X, need_weights=False)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ds.Temperature(2, layers=2), "there is no layer 2; expected 0 to 1, or globs of first"),
        (ds.Temperature(2, layers=["third"]), "there is no layer third"),
        (ds.AblateHeads(heads=2), "first has no head 2; expected 0 to 1"),
    ],
)
def test_places_that_do_not_exist(model, edit, message):
    with pytest.raises(BadRequest, match=message), ds.edit(model, edit):
        model(X)
    assert hooks(model) == []


def test_what_cannot_be_edited(model):
    with pytest.raises(BadRequest, match=r"a dict cannot be edited(?s:.*)pipe\.transformer"):
        ds.edit({}, SHARP)
    for edits in ((), (1.3,), ([SHARP],)):
        with pytest.raises(BadRequest, match="edits: found"):
            ds.edit(model, *edits)
    with pytest.raises(NothingWatched, match="was not called"), ds.edit(model, SHARP):
        pass
    with pytest.raises(NothingWatched, match="makes no call"):
        blind = HandWrittenAttention()
        with ds.edit(blind, SHARP):
            blind(X)


def test_a_model_that_changes_between_forwards(model):
    with pytest.raises(NothingWatched, match="made 1 attention calls, the census expects 2"):
        with ds.edit(model, SHARP):
            model(X)
            model.second = nn.Identity()
            model(X)


def test_which_models_are_edited(model):
    assert not is_edited(model)
    with ds.edit(model.first, SHARP):
        assert is_edited(model) and is_edited(model.first) and not is_edited(model.second)
        model(X)
    assert not is_edited(model)


def test_heads_of_a_single_head_module():
    model = Heads(heads=1)
    with ds.edit(model, ds.AblateHeads(heads=0)):
        assert (model(X) == 0).all()
