"""Looking at a training does not change it: reports, attention, previews."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditscope.model.dit import DiT
from ditscope.train import preview as preview_module
from ditscope.train.health import attention_health
from ditscope.train.loop import Training
from ditscope.train.preview import preview
from tests.train.tiny import MODEL, config, run, same


def test_looking_changes_nothing(tmp_path: Path) -> None:
    plain, _ = run(config(), tmp_path / "plain")
    looked = config(preview_every=6, health_every=4)
    watched, _ = run(looked, tmp_path / "looked")
    assert same(plain.model.state_dict(), watched.model.state_dict())
    assert same(plain.ema.state_dict(), watched.ema.state_dict())
    lines = [json.loads(x) for x in (tmp_path / "looked" / "log.jsonl").read_text().splitlines()]
    health = [line for line in lines if line.get("event") == "attention"]
    assert [line["step"] for line in health] == [4, 8, 12]
    assert [layer["site"] for layer in health[0]["layers"]] == ["blocks.0.attn", "blocks.1.attn"]
    names = [path.name for path in sorted((tmp_path / "looked" / "previews").iterdir())]
    assert names == ["0000006.png", "0000012.png"]
    with Image.open(tmp_path / "looked" / "previews" / names[1]) as sheet:
        assert sheet.size == (4 * 16, 2 * 16)
        shown = np.asarray(sheet)
    drawn = preview(watched.ema, looked)
    assert np.array_equal(shown[16:, 32:48], drawn[6])


def test_reports_tell_rate_and_memory(tmp_path: Path) -> None:
    settings = config(warmup_steps=9, steps=8)
    _, lines = run(settings, tmp_path / "t")
    assert [line.learning_rate for line in lines] == [3e-3 * 0.4, 3e-3 * 0.8]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert all(0.05 < line.peak_memory_gib <= most + 0.001 for line in lines)


def opened(head: float) -> DiT:
    """A network in whose second layer the first head looks away from the mean by `head`."""
    torch.manual_seed(0)
    network = DiT(config().model).eval()
    with torch.no_grad():
        for block in network.blocks:
            qkv = block.get_submodule("attn.qkv")
            qkv.weight[:64] = 0  # queries and keys of both heads: uniform attention
            qkv.bias[:64] = 0
        second = network.blocks[1].get_submodule("attn.qkv")
        second.weight[0:16] = head * torch.eye(16, 32)
        second.weight[32:48] = head * torch.eye(16, 32)
    return network


def test_health_against_whole_matrices() -> None:
    """Entropy and received mass from full softmax matrices in float64; dead heads by hand."""
    network = opened(2.0)
    x, t, y = torch.randn(3, 3, 16, 16), torch.rand(3) * 1000, torch.tensor([1, 2, 3])
    kept: list[torch.Tensor] = []
    handle = (
        network.blocks[1]
        .get_submodule("attn")
        .register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    )
    first, second = attention_health(network, lambda: network(x, t, y))
    handle.remove()
    assert (first.site, first.dead_heads) == ("blocks.0.attn", 2)
    assert first.entropy == pytest.approx(math.log(16), rel=1e-5)
    assert first.received_max == pytest.approx(1 / 16, rel=1e-4)
    projection = network.blocks[1].get_submodule("attn.qkv")
    qkv = projection(kept[-1]).detach().double().view(3, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(qkv[0] @ qkv[1].mT / 4, dim=-1)  # (rows, heads, queries, keys)
    entropy = -(weights * weights.log()).sum(-1).mean(-1)  # (rows, heads)
    assert second.entropy == pytest.approx(entropy.mean().item(), rel=1e-5)
    assert second.received_max == pytest.approx(weights.mean(2).max().item(), rel=1e-4)
    assert second.dead_heads == 1 and entropy[:, 0].mean() < 0.99 * math.log(16)


@pytest.mark.parametrize("process", [{"kind": "ddpm"}, {"kind": "flow"}])
def test_previews_start_from_the_same_noise(process: dict[str, object]) -> None:
    settings = config(process=process, model={**MODEL, "learn_sigma": process["kind"] == "ddpm"})
    torch.manual_seed(0)
    network = DiT(settings.model).eval()
    with torch.no_grad():
        network.final_layer.linear.weight.normal_(std=0.02)
    one = preview(network, settings)
    torch.manual_seed(1)  # what the global generator does is not heard
    assert one.shape == (8, 16, 16, 3) and np.array_equal(one, preview(network, settings))
    assert not np.array_equal(one, preview(network, settings.model_copy(update={"seed": 1})))


def test_a_preview_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview_module.Image.Image, "save", full)
    told: list[str] = []
    with Training(config(preview_every=12), tmp_path / "t") as training:
        training.run(lambda line: None, told.append)
    assert training.step == 12 and len(told) == 1
    assert told[0].startswith("no preview at step 12") and "No space left" in told[0]
