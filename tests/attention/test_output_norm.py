"""The metric of what heads put out: from the call's own output, so exact where that is."""

import pytest
import torch
import torch.nn.functional as F

import ditscope as ds
from ditscope.attention.metrics import registry
from ditscope.attention.metrics.sampling import explain
from ditscope.core.statistics import STATISTICS
from ditscope.errors import BadRequest


class Attend(torch.nn.Module):
    """Two calls: the second has values of another width, and one head that says nothing."""

    def forward(self, q, k, v):
        F.scaled_dot_product_attention(q, k, v)
        silent = v.clone()
        silent[:, 1] = 0
        return F.scaled_dot_product_attention(q, k, silent[..., :3])


def inputs():
    torch.manual_seed(0)
    return [torch.randn(2, 3, 7, 8) for _ in range(3)]


def reference(q, k, v):
    p = torch.softmax(q.double() @ k.double().mT / 8**0.5, -1)
    return ((p @ v.double()) ** 2).sum(-1).mean(-1).sqrt()


def test_it_is_the_root_mean_square_of_the_output():
    q, k, v = inputs()
    with ds.watch(model := Attend(), metrics=["output_norm"]) as seen:
        model(q, k, v)
    found = seen.stats["output_norm"].values[0]  # (sample, site, head)
    torch.testing.assert_close(
        torch.from_numpy(found[:, 0]), reference(q, k, v).float(), rtol=1e-5, atol=1e-6
    )
    silent = v.clone()
    silent[:, 1] = 0
    torch.testing.assert_close(
        torch.from_numpy(found[:, 1]),
        reference(q, k, silent[..., :3]).float(),
        rtol=1e-5,
        atol=1e-6,
    )
    assert (found[:, 1, 1] == 0).all()


def test_an_ablated_head_puts_out_nothing_and_looks_as_before():
    q, k, v = inputs()
    model = Attend()
    with ds.watch(model, metrics=["entropy", "output_norm"]) as plain:
        model(q, k, v)
    with (
        ds.watch(model, metrics=["entropy", "output_norm"]) as seen,
        ds.edit(model, ds.AblateHeads(layers=0, heads=[2])),
    ):
        model(q, k, v)
    after, before = seen.stats.isel(forward=0), plain.stats.isel(forward=0)
    assert (after["output_norm"].values[:, 0, 2] == 0).all()
    assert (after["output_norm"].values[:, 0, :2] == before["output_norm"].values[:, 0, :2]).all()
    assert (after["entropy"].values == before["entropy"].values).all()


def test_it_needs_no_pass():
    assert explain(["entropy", "output_norm"]).splitlines()[-1] == (
        "from the output of the call: output_norm"
    )


def test_a_metric_of_the_output_that_is_none_is_named(monkeypatch):
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    monkeypatch.delitem(STATISTICS, "largest_output", raising=False)

    @registry.metric("largest_output", needs="output")
    def largest(output):
        return output.amax(-1)

    model = Attend()
    with (
        pytest.raises(BadRequest, match=r"metric largest_output.*one number for each row and head"),
        ds.watch(model, metrics=["largest_output"]),
    ):
        model(*inputs())
    del STATISTICS["largest_output"]
