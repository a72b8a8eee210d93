"""The three metrics that every run records keep their numbers, bit for bit, and their passes."""

import pytest
import torch

from ditscope.attention import stats
from ditscope.attention.lse import attention_lse
from ditscope.attention.metrics.plan import plan_of
from ditscope.attention.metrics.sampling import explain
from ditscope.attention.operands import operands
from ditscope.attention.seam import AttentionCall
from ditscope.attention.stats import measure
from ditscope.core.sites import TokenGrid
from ditscope.core.statistics import DEFAULT_METRICS
from tests.attention.reference import qkv

GRID = TokenGrid(height=4, width=6)


def first_tiles(call, grid):
    """The arithmetic of the first release, in its order, for operands that fit in one tile."""
    attention = operands(call)
    rows, heads, queries, _ = attention.q.shape
    q, k = (x.float().contiguous().flatten(0, 1) for x in (attention.q, attention.k))
    scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=attention.scale)
    bias = attention.bias(slice(None))
    if bias is not None:
        scores += bias.expand(rows, heads, *bias.shape[-2:]).flatten(0, 1)
    p, largest = scores.softmax(-1), scores.amax(-1)
    lse = largest - p.amax(-1).log_()
    image = slice(grid.start, grid.start + grid.count)
    token = torch.arange(grid.count)
    y, x = (token // grid.width).float(), (token % grid.width).float()
    apart = (y[:, None] - y).square_() + (x[:, None] - x).square_()
    if attention.plain and grid.count == queries:
        square, placed = torch.mv(p.flatten(1), apart.flatten()), queries
    else:
        among = scores[:, image, image]
        unplaced = among.amax(-1) == -torch.inf
        square = (among.softmax(-1) * apart).sum(-1).masked_fill_(unplaced, 0.0).sum(-1)
        placed = (~unplaced).sum(-1)
    blind = largest == -torch.inf
    p.masked_fill_(blind.unsqueeze(-1), 0.0)
    scores.masked_fill_(scores == -torch.inf, 0.0)
    lse.masked_fill_(blind, 0.0)
    seeing = (~blind).sum(-1)
    found = {
        "entropy": (lse.sum(-1) - scores.mul_(p).sum((-1, -2))) / seeing,
        "rms_distance": (square / placed).sqrt(),
        "received_max": p.sum(-2).amax(-1) / seeing,
    }
    return {name: value.view(rows, heads) for name, value in found.items()}


def first_fused(call, grid):
    """As above of fused calls, for keys without a common offset and few grid lines."""
    q, k, scale = call.q, call.k, call.softmax_scale
    read, lse = attention_lse(q, k, k, None, scale)
    score = (read.float() * q.float()).sum((-1, -2))
    one_hot = torch.nn.functional.one_hot
    token = torch.arange(grid.count)
    y, x = token // grid.width, token % grid.width
    lines = torch.cat([one_hot(x, grid.width), one_hot(y, grid.height)], -1).to(q.dtype)
    apart = torch.cat(
        [x[:, None] - torch.arange(grid.width), y[:, None] - torch.arange(grid.height)], -1
    )
    width = q.shape[-1]
    values = torch.nn.functional.pad(lines, (0, width - lines.shape[-1])).expand_as(q)
    found, sums = attention_lse(k, q, values, -lse, scale)
    share = found[..., : lines.shape[-1]].float().mul_(sums.exp().unsqueeze(-1))
    total = 0 + share.sum((-1, -2))
    square = 0 + share.mul_(apart.float().square()).sum((-1, -2))
    return {
        "entropy": lse.mean(-1) - score * (scale / q.shape[2]),
        "rms_distance": (square * 2 / total).sqrt(),
        "received_max": sums.amax(-1).exp() / q.shape[2],
    }


def equal(found, wanted):
    assert list(found) == list(DEFAULT_METRICS)
    assert all(
        torch.equal(found[name].nan_to_num(-1), wanted[name].nan_to_num(-1)) for name in found
    )


def calls():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.rand(24, 24, generator=generator) > 0.4
    hidden[3] = False
    return {
        "plain": {},
        "bool": {"attn_mask": hidden},
        "additive": {"attn_mask": torch.randn(2, 2, 24, 24, generator=generator)},
        "causal": {"is_causal": True},
        "blind": {"attn_mask": torch.zeros(24, 24, dtype=torch.bool)},
    }


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("size", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("grid", [GRID, TokenGrid(height=3, width=4, start=5)])
def test_tiles_give_the_first_bits(monkeypatch, name, size, grid):
    monkeypatch.setattr(stats, "way", lambda *_: "tiles")
    call = AttentionCall(*qkv(width=72, size=size), **calls()[name])
    equal(measure(operands(call), plan_of(DEFAULT_METRICS), grid).heads, first_tiles(call, grid))


@pytest.mark.parametrize("size", [0.01, 1.0, 8.0])
def test_fused_calls_give_the_first_bits(monkeypatch, size):
    monkeypatch.setattr(stats, "way", lambda *_: "fused")
    call = AttentionCall(*qkv(width=72, size=size, dtype=torch.bfloat16))
    equal(measure(operands(call), plan_of(DEFAULT_METRICS), GRID).heads, first_fused(call, GRID))


def test_two_fused_calls_or_one_pass_serve_the_default():
    assert explain() == (
        "without a mask, where there is a kernel, one pass over scores that are not kept,\n"
        "for all of this; else:\n"
        "where a mask or the precision asks for it, one pass over tiles of scores, softmax and "
        "log-sum-exp of each:\n"
        "  reduced per query: entropy\n"
        "  reduced per image query: rms_distance\n"
        "  summed over queries: received_max\n"
        "elsewhere, fused attention calls and no tile:\n"
        "  1. attention with the keys as values, for log-sum-exp and entropy\n"
        "  2. queries and keys swapped, for rms_distance, received_max"
    )


@pytest.mark.parametrize("names", [DEFAULT_METRICS, ("entropy",), ("received_max",), ()])
def test_as_many_fused_calls_as_are_said(monkeypatch, names):
    made = []

    def counted(*arguments):
        made.append(arguments)
        return attention_lse(*arguments)

    monkeypatch.setattr(stats, "way", lambda *_: "fused")
    monkeypatch.setattr(stats, "attention_lse", counted)
    measure(operands(AttentionCall(*qkv())), plan_of(names), GRID)
    said = [line for line in explain(names).splitlines() if line[2:3].isdigit()]
    assert len(made) == len(said)
