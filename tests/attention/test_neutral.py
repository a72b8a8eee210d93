"""Watching changes nothing: what the table of models and conditions does not reach."""

import pytest
import torch
import xarray

from ditscope.attention import stats
from ditscope.attention.capture import Capture
from ditscope.attention.census import census
from ditscope.attention.watch import watch
from ditscope.errors import NothingWatched
from tests.attention.reference import Plain, tiny_dit
from tests.attention.zoo import MODELS, made


@pytest.mark.parametrize("way", ["tiles", "fused", None])
def test_under_autocast_and_inference(monkeypatch, way):
    if way:
        monkeypatch.setattr(stats, "way", lambda *_: way)
    model, inputs = tiny_dit()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plain = model(*inputs)
        with watch(model) as seen:
            watched = model(*inputs)
    assert torch.equal(plain, watched)
    assert seen.rows("blocks.0.attn", range(24)).sum("key").values == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_compiled_without_a_graph_break(monkeypatch, fused):
    monkeypatch.setattr(stats, "_fused_pays", lambda _: fused)
    torch.compiler.reset()
    model, inputs = tiny_dit(depth=1)
    with torch.no_grad():
        sites = census(model, *inputs)
        with Capture(sites) as eager:
            model(*inputs)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        plain = compiled(*inputs)
        with Capture(sites) as capture:
            watched = compiled(*inputs)
    assert torch.equal(plain, watched)
    for name, value in capture.statistics().items():
        torch.testing.assert_close(value, eager.statistics()[name])


def test_watch_of_a_compiled_model():
    """The hooks are on the wrapper, outside of the graph."""
    torch.compiler.reset()
    model = Plain()
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), torch.randn(2, 6, 16)
    with torch.no_grad(), watch(compiled) as seen:
        watched = compiled(x)
    assert [site.name for site in seen.sites] == ["first", "second"]
    assert torch.equal(model(x), watched)


def test_many_forwards_of_a_compiled_model():
    """The graph with the seam in it is made once, and serves every watch after that."""
    torch.compiler.reset()
    model, x, graphs = Plain(), torch.randn(2, 6, 16), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        plain = compiled(x)
        for factor in (1, 2):
            with watch(compiled) as seen:
                outputs = [compiled(factor * x) for _ in range(10)]
            with watch(model) as uncompiled:
                model(factor * x)
            # Another path than the kernel's: a graph is made of stock operators.
            xarray.testing.assert_allclose(seen.stats.isel(forward=[9]), uncompiled.stats, 1e-5)
            assert all(torch.equal(each, outputs[0]) for each in outputs)
        assert torch.equal(plain, compiled(x))
    assert len(graphs) == 2


def test_text_and_image_blocks_compiled_without_a_graph_break():
    """Of FLUX, both kinds of block; it calls a method that Dynamo cannot follow under a mode."""
    torch.compiler.reset()
    case = made(MODELS["diffusers_flux"])
    with torch.no_grad():
        plain = case()
        case.model = torch.compile(case.model, backend="eager", fullgraph=True)
        with watch(case.model) as seen:
            watched = case()
    assert torch.equal(plain, watched)
    assert [site.grid for site in seen.sites] == case.grids


def test_what_cannot_be_watched_when_compiled_says_so():
    torch.compiler.reset()
    model, x = Plain(), torch.randn(2, 6, 16)
    model.first.compile(backend="eager")
    model.second = torch.compile(model.second, backend="eager")
    with pytest.raises(NothingWatched, match="first, second is compiled by itself"), watch(model):
        model(x)
    case = made(MODELS["torch_composite"])
    compiled = torch.compile(case.model, backend="eager")
    with pytest.raises(NothingWatched, match=r"2 nn\.MultiheadAttention in a compiled network"):
        with watch(compiled):
            compiled(*case.args)


def test_a_compiled_part_without_attention_is_no_hindrance():
    torch.compiler.reset()
    model, x = torch.nn.Sequential(torch.nn.Linear(16, 16), Plain()), torch.randn(2, 6, 16)
    model[0].compile(backend="eager")
    plain = model(x)
    with watch(model) as seen:
        assert torch.equal(plain, model(x))
    assert [site.name for site in seen.sites] == ["1.first", "1.second"]


def test_operands_are_not_written_to():
    """A statistic that worked in place would change what the model computes next."""
    model, x = Plain(), torch.randn(2, 6, 16)
    shown = []

    def versions(seen):
        for tensor in (seen.operands.q, seen.v, seen.output):
            shown.append((tensor, tensor._version, tensor.clone()))

    with Capture(census(model, x), on_attention=versions):
        model(x)
    for tensor, version, copy in shown:
        assert tensor._version == version and torch.equal(tensor, copy)
