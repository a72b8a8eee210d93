"""What edits make of a call, against attention by hand in float64; and edits as data."""

import json
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ditscope.attention.edits.ablate_heads import AblateHeads
from ditscope.attention.edits.forward import EditedForward, softmax_scales
from ditscope.attention.edits.kinds import edits_of, specs_of
from ditscope.attention.edits.temperature import Temperature
from ditscope.attention.seam import AttentionCall
from ditscope.core.sites import Site
from ditscope.errors import BadRequest, BadRun, NothingWatched
from tests.attention.reference import qkv

SDPA = F.scaled_dot_product_attention
HEADS = 4


def site_of(index=0, heads=HEADS, name=None):
    name = name or f"blocks.{index}.attn"
    return Site(index=index, name=name, heads=heads, queries=9, keys=9, head_width=16)


def calls():
    """Attention calls of every form, some of them hard on numbers."""
    q, k, v = qkv(heads=HEADS, queries=9, keys=12)
    hidden = torch.rand(9, 12, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden[:, 0] = True
    bias = 3 * torch.randn(2, 1, 9, 12, generator=torch.Generator().manual_seed(2))
    call = AttentionCall(q, k, v)
    _, k2, v2 = qkv(heads=2, queries=9, keys=12, seed=3)
    large = torch.full_like(v, 1e4)
    return {
        "plain": call,
        "sharp": replace(call, q=8 * q),
        "flat": replace(call, q=torch.zeros_like(q)),
        "one key above all": replace(call, k=torch.cat([40 * k[..., :1, :], k[..., 1:, :]], -2)),
        "large values": replace(call, v=large),
        "a scale": replace(call, scale=0.7),
        "hidden": replace(call, attn_mask=hidden),
        "a bias": replace(call, attn_mask=bias),
        "causal": replace(call, is_causal=True),
        "grouped": replace(call, k=k2, v=v2, enable_gqa=True),
        "shared keys": replace(call, k=k[:, :1], v=v[:, :1]),
        "one token": replace(call, q=q[..., :1, :], k=k[..., :1, :], v=v[..., :1, :]),
        "not contiguous": replace(call, q=q.mT.contiguous().mT),
    }


CALLS = calls()


def by_hand(call, temperatures, ablated):
    """`softmax(scale q k^T / temperature + bias) v` in float64, one head after the other."""
    heads = call.q.shape[-3]
    parts = []
    for h in range(heads):
        q, k, v = (
            each[:, h * each.shape[-3] // heads].double() for each in (call.q, call.k, call.v)
        )
        scores = q @ k.mT * call.softmax_scale / temperatures[h]
        if call.attn_mask is not None and call.attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~call.attn_mask, -torch.inf)
        elif call.attn_mask is not None:
            scores = scores + call.attn_mask[:, 0].double()
        if call.is_causal:
            scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
        parts.append((scores.softmax(-1) @ v) * (h not in ablated))
    return torch.stack(parts, 1)


def attended(call, *edits, sites=None):
    with EditedForward(edits, sites or [site_of()], 0):
        return SDPA(**call.arguments)


def cast(call, dtype):
    q, k, v = (each.to(dtype) for each in (call.q, call.k, call.v))
    mask = call.attn_mask
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    return replace(call, q=q, k=k, v=v, attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [None, (1, 2)])
@pytest.mark.parametrize("name", CALLS)
def test_edited_attention_by_hand(name, heads, dtype):
    """Both edits at once; in bfloat16 the temperature of some heads is one that does not round."""
    call = cast(CALLS[name], dtype)
    temperature = 2.0 if dtype == torch.bfloat16 and heads else 1.3
    output = attended(call, Temperature(temperature, heads=heads), AblateHeads(heads=[2]))
    temperatures = [temperature if heads is None or h in heads else 1.0 for h in range(HEADS)]
    expected = by_hand(call, temperatures, {2})
    error = (output.double() - expected).abs().max() / call.v.double().abs().max()
    assert output.dtype == dtype
    assert error < {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 1.5e-2}[dtype]
    plain = by_hand(call, [1.0] * HEADS, set())
    assert (expected - plain).abs().max() > 1e-3 * plain.abs().max()  # there was something to see


def test_some_heads_in_half_precision_round_once():
    """The queries are divided and rounded to bfloat16, as the docstring says."""
    q, k, v = qkv(heads=HEADS, dtype=torch.bfloat16)
    call = AttentionCall(q, k, v)
    changed = Temperature(1.3).change(call, (1,))
    off = (changed.q[:, 1].double() * 1.3 / q[:, 1].double() - 1).abs().max()
    assert 0 < off <= 2**-8
    assert torch.equal(changed.q[:, [0, 2, 3]], q[:, [0, 2, 3]]) and changed.scale is None


@given(
    temperature=st.floats(1e-3, 1e3),
    heads=st.sets(st.integers(0, HEADS - 1), min_size=1),
    size=st.sampled_from([1e-3, 1.0, 10.0]),
    seed=st.integers(0, 2**16),
)
def test_any_temperature_of_any_heads(temperature, heads, size, seed):
    q, k, v = (each.double() for each in qkv(heads=HEADS, queries=7, size=size, seed=seed))
    output = attended(AttentionCall(q, k, v), Temperature(temperature, heads=heads))
    temperatures = [temperature if h in heads else 1.0 for h in range(HEADS)]
    torch.testing.assert_close(
        output, by_hand(AttentionCall(q, k, v), temperatures, set()), rtol=1e-8, atol=1e-8 * size
    )


def test_ends_of_the_scale():
    """The sharpest is the choice of one key, the flattest the mean."""
    q, k, v = qkv(heads=HEADS)
    call = AttentionCall(q, k, v)
    best = (q @ k.mT).argmax(-1)
    sharp, flat = (attended(call, Temperature(t)) for t in (1e-3, 1e3))
    chosen = torch.gather(v, 2, best.unsqueeze(-1).expand(-1, -1, -1, v.shape[-1]))
    assert ((sharp - chosen).abs().amax(-1) < 1e-3).float().mean() > 0.95  # but for near ties
    torch.testing.assert_close(flat, v.mean(-2, keepdim=True).expand_as(v), atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "grouped"])
def test_other_heads_keep_their_bits(name):
    call = CALLS[name]
    plain = SDPA(**call.arguments)
    for edit in (Temperature(1.3, heads=[1]), AblateHeads(heads=[1])):
        output = attended(call, edit)
        assert torch.equal(output[:, [0, 2, 3]], plain[:, [0, 2, 3]])
    assert (output[:, 1] == 0).all() and (plain[:, 1] != 0).any()


def test_ablation_is_zero_whatever_the_values():
    q, k, v = qkv(heads=HEADS)
    v[:, 1, 3] = torch.inf
    v[:, 1, 4] = torch.nan
    for heads in ([1], None):
        assert (attended(AttentionCall(q, k, v), AblateHeads(heads=heads))[:, 1] == 0).all()


@pytest.mark.parametrize("edit", [Temperature(1.3), AblateHeads(), Temperature(2, heads=[0])])
@pytest.mark.parametrize("shape", [(9, 16), (3, 9, 16), (2, 5, 4, 9, 16)])
def test_calls_with_fewer_and_more_axes(edit, shape):
    q, k, v = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(3))
    heads = shape[-3] if len(shape) > 3 else 1
    output = attended(AttentionCall(q, k, v), edit, sites=[site_of(heads=heads)])
    factor = getattr(edit, "temperature", 1.0)
    edited = (q.double() @ k.double().mT / 4 / factor).softmax(-1) @ v.double()
    edited = torch.zeros_like(edited) if isinstance(edit, AblateHeads) else edited
    plain = SDPA(q.double(), k.double(), v.double())
    expected = edited
    if edit.heads and heads > 1:
        expected = torch.cat([edited[..., :1, :, :], plain[..., 1:, :, :]], -3)
    assert output.shape == q.shape
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_edits_do_not_write(name):
    call = CALLS[name]
    tensors = (call.q, call.k, call.v)
    before = [(each._version, each.clone()) for each in tensors]
    attended(call, Temperature(1.3, heads=[0]), AblateHeads(heads=[1]))
    for each, (version, copy) in zip(tensors, before, strict=True):
        assert each._version == version and torch.equal(each, copy)


def test_where_an_edit_acts():
    edit = Temperature(2, layers=["blocks.[01].attn", 3], heads=[1, 0, 1], steps=range(2, 4))
    sites = [site_of(index) for index in range(5)]
    acts = {(site.index, step) for site in sites for step in range(6) if edit.heads_at(site, step)}
    assert acts == {(layer, step) for layer in (0, 1, 3) for step in (2, 3)}
    assert edit.heads_at(sites[0], 2) == (0, 1)
    assert Temperature(2, layers="attn[0]").heads_at(site_of(name="attn[0]"), 0) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "edit",
    [
        Temperature(1),
        Temperature(1.0, heads=[0]),
        Temperature(1.3, layers=[]),
        AblateHeads(heads=()),
        AblateHeads(steps=[1]),
    ],
)
def test_neutral_edits_pass_the_very_call(edit):
    with EditedForward([edit], [site_of()], 0) as forward:
        assert not forward.acts
        assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Temperature(0), r"Temperature\.temperature: .*0\.001"),
        (lambda: Temperature(-1), "greater than"),
        (lambda: Temperature(1e4), "less than or equal to 1000"),
        (lambda: Temperature(float("nan")), "finite"),
        (lambda: Temperature(float("inf")), "Temperature.temperature"),
        (lambda: Temperature("1.3"), "valid number, found '1.3'"),
        (lambda: Temperature(True), "valid number"),
        (lambda: Temperature(), "Temperature.temperature: Field required"),
        (lambda: Temperature(1.3, 20), "2 values without a name"),
        (lambda: Temperature(1.3, layer=20), "Temperature.layer: Extra inputs"),
        (lambda: Temperature(1.3, kind="ablate_heads"), "Temperature.kind"),
        (lambda: Temperature(1.3, heads=-1), "Temperature.heads: .*greater than or equal to 0"),
        (lambda: Temperature(1.3, heads=1.0), "an index or several"),
        (lambda: Temperature(1.3, heads=[1.0]), "an index or several"),
        (lambda: Temperature(1.3, heads="1"), "valid integer"),
        (lambda: Temperature(1.3, steps=[True]), "valid integer"),
        (lambda: AblateHeads(5), "1 values without a name"),
        (lambda: AblateHeads(layers={"a": object()}.values()), "an index or several"),
    ],
)
def test_bad_edits(made, message):
    with pytest.raises(BadRequest, match=message):
        made()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Temperature(2, layers=3), r"Temperature\.layers: there is no layer 3; expected 0 to 2"),
        (Temperature(2, layers="block.*"), r"no layer block\.\*.*globs of blocks\.0\.attn"),
        (Temperature(2, heads=4), r"blocks\.0\.attn has no head 4; expected 0 to 3"),
        (AblateHeads(layers=2, heads=[2, 3]), r"blocks\.2\.attn has no head 2, 3; expected 0 to 1"),
        (AblateHeads(layers=0, steps=[4, 5]), r"AblateHeads\.steps: .*step 5; expected 0 to 4"),
    ],
)
def test_places_that_do_not_exist(edit, message):
    sites = [site_of(0), site_of(1), site_of(2, heads=2)]
    with pytest.raises(BadRequest, match=message):
        edit.check(sites, 5)


def test_places_that_exist():
    sites = [site_of(0), site_of(1), site_of(2, heads=2)]
    AblateHeads(layers=[0, "blocks.1.*"], heads=[3], steps=4).check(sites, 5)
    Temperature(2, steps=99).check(sites)


def test_indices_of_any_kind():
    expected = AblateHeads(layers=(1, 2), heads=(0,))
    assert AblateHeads(layers=range(1, 3), heads=np.int64(0)) == expected
    assert AblateHeads(layers=torch.tensor([1, 2]), heads=np.array([0])) == expected
    assert AblateHeads(layers=islice(count(1), 2), heads=torch.tensor(0)) == expected
    assert hash(expected) == hash(AblateHeads(layers=[1, 2], heads=[0]))


EDITS = (
    Temperature(1.3, layers=range(20, 28), heads=[3]),
    AblateHeads(layers=["blocks.1.attn", 5], steps=0),
    Temperature(1 / 3),
)


def test_to_json_and_back():
    text = json.dumps(specs_of(EDITS), allow_nan=False)
    assert edits_of(json.loads(text)) == EDITS
    assert [type(edit) for edit in edits_of(json.loads(text))] == [type(edit) for edit in EDITS]
    assert edits_of(()) == ()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "sharpen"}, "'sharpen'.*'temperature', 'ablate_heads'"),
        ({}, "kind"),
        ("temperature", "an object"),
        ({"kind": "temperature"}, "temperature: Field required"),
        ({"kind": "temperature", "temperature": "2"}, "valid number"),
        ({"kind": "temperature", "temperature": 0}, "greater than"),
        ({"kind": "temperature", "temperature": 2, "token": 1}, "token: Extra inputs"),
        ({"kind": "ablate_heads", "heads": [0.5]}, "heads"),
        ({"kind": "ablate_heads", "heads": [True]}, "heads"),
        ({"kind": "ablate_heads", "layers": [[]]}, "layers"),
    ],
)
def test_specs_are_read_strictly(spec, message):
    with pytest.raises(BadRun, match=rf"run\.json: edits(?s:.*){message}"):
        edits_of([spec], file="run.json")


def test_scales_of_a_step():
    sites = [site_of(0), site_of(1, heads=2)]
    edits = [Temperature(2, layers=1, steps=3), Temperature(4, heads=[0]), Temperature(5, layers=1)]
    assert softmax_scales(edits, sites, 3) == (0.25, 0.025)
    assert softmax_scales(edits, sites, 2) == (0.25, 0.05)


def test_calls_that_the_census_does_not_expect():
    q, k, v = qkv(heads=HEADS)
    edit = Temperature(2)
    with pytest.raises(NothingWatched, match="made 1 attention calls, the census expects 2"):
        attended(AttentionCall(q, k, v), edit, sites=[site_of(0), site_of(1)])
    with pytest.raises(NothingWatched, match="has 4 heads, the census expects 2"):
        attended(AttentionCall(q, k, v), edit, sites=[site_of(heads=2)])
    with (
        pytest.raises(NothingWatched, match="made 2 attention calls"),
        EditedForward([edit], [site_of()], 0),
    ):
        SDPA(q, k, v)
        SDPA(q, k, v)
    assert torch._C._len_torch_function_stack() == 0
