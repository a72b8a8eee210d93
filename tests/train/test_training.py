"""Training: it learns, it resumes exactly, and its coarse stage hands over what it learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ditscope.core.strict_json import read
from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadCheckpoint, BadConfig, BadRequest, ResourceError
from ditscope.model.dit import DiT
from ditscope.pipeline import load
from ditscope.train.batches import batch
from ditscope.train.checkpoint import load_checkpoint
from ditscope.train.coarse import coarse_model, refine
from ditscope.train.export import check_export, export
from ditscope.train.loop import Training
from ditscope.train.objective import NoisyBatch, flow_losses
from ditscope.train.sources import EmojiSource
from tests.train.tiny import config, run, same


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(tmp_path: Path, optimizer: str, precision: str) -> None:
    settings = config(optimizer=optimizer, precision=precision, steps=80, log_every=20)
    _, lines = run(settings, tmp_path / "t")
    assert lines[-1].loss < 0.7 * lines[0].loss
    assert lines[-1].pictures == 80 * 8


@pytest.mark.parametrize("coarse_steps", [0, 6])
def test_resuming_is_exact(tmp_path: Path, coarse_steps: int) -> None:
    settings = config(coarse_steps=coarse_steps)
    whole, _ = run(settings, tmp_path / "whole")
    for stop in (4, 8):
        shorter = settings.model_copy(update={"steps": max(stop, coarse_steps)})
        run(shorter, tmp_path / "parts")
    parts, _ = run(settings, tmp_path / "parts")
    assert same(whole.model.state_dict(), parts.model.state_dict())
    assert same(whole.ema.state_dict(), parts.ema.state_dict())


def test_another_training_is_refused(tmp_path: Path) -> None:
    run(config(), tmp_path / "t")
    with pytest.raises(BadConfig, match="learning_rate"):
        Training(config(learning_rate=1e-4), tmp_path / "t")


def test_the_fine_network_starts_where_the_coarse_one_was() -> None:
    """On pictures without fine detail both draw alike: the same mean of every coarse patch."""
    settings = config(coarse_steps=1)
    torch.manual_seed(0)
    coarse = coarse_model(settings.model)
    with torch.no_grad():
        coarse.final_layer.linear.weight.normal_(std=0.1)
        coarse.final_layer.linear.bias.normal_(std=0.1)
    fine = DiT(settings.model)
    fine.load_state_dict(refine(coarse.state_dict(), settings.model))
    flat = torch.randn(2, 3, 1, 1).expand(2, 3, 16, 16)
    t, y = torch.tensor([300.0, 700.0]), torch.tensor([1, 2])
    patches = torch.nn.functional.avg_pool2d(fine(flat, t, y), 4)
    expected = torch.nn.functional.avg_pool2d(coarse(flat, t, y), 8)
    assert patches.shape == (2, 3, 4, 4)
    # Positions differ by half a coarse patch, which an untrained network (identity blocks) sees
    # only in the final layer.
    ours = torch.nn.functional.avg_pool2d(patches, 2)
    assert (ours - expected).abs().max() < 0.2 * expected.abs().max()


def test_picture_and_velocity_prediction_have_one_loss() -> None:
    """A network that knows the answer has no loss, whichever way it says it."""
    settings = config()
    torch.manual_seed(0)
    x0, noise, levels = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.rand(4)
    y = torch.zeros(4, dtype=torch.long)
    assert settings.process.kind == "flow"
    says_x = settings.process
    says_v = says_x.model_copy(update={"prediction": "velocity"})
    asked = NoisyBatch(x0, y, levels, noise)
    exact_x = flow_losses(says_x, lambda x, t, y: x0, asked)
    exact_v = flow_losses(says_v, lambda x, t, y: noise - x0, asked)
    assert exact_x.abs().max() < 1e-9 and exact_v.abs().max() < 1e-9
    off = torch.randn(4, 3, 8, 8) * 0.1
    wrong_x = flow_losses(says_x, lambda x, t, y: x0 + off, asked)
    divisor = levels.clamp_min(0.05).view(-1, 1, 1, 1)
    expected = (off / divisor).square().flatten(1).mean(1)
    torch.testing.assert_close(wrong_x, expected)


def test_export_draws(tmp_path: Path) -> None:
    training, _ = run(config(), tmp_path / "t")
    export(tmp_path / "t", tmp_path / "pipeline")
    pipe = load(tmp_path / "pipeline", dtype="float32")
    assert pipe.labels == EmojiScenes.class_names
    for name, value in pipe.model.state_dict().items():
        torch.testing.assert_close(value, training.ema.state_dict()[name].bfloat16().float())
    said = read(tmp_path / "pipeline" / "config.json")["training"]
    assert isinstance(said, dict) and said["step"] == 12 and said["pictures"] == 96


def test_export_needs_a_fine_checkpoint(tmp_path: Path) -> None:
    run(config(coarse_steps=12), tmp_path / "t")
    with pytest.raises(BadCheckpoint, match="coarse stage"):
        export(tmp_path / "t", tmp_path / "pipeline")
    with pytest.raises(BadCheckpoint, match="no checkpoint"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "config.json").write_bytes(
            (tmp_path / "t" / "config.json").read_bytes()
        )
        export(tmp_path / "empty", tmp_path / "pipeline")


def test_pictures_of_a_step_do_not_depend_on_history() -> None:
    settings = config()
    first = batch(settings, EmojiSource(settings), 5)
    again = batch(settings, EmojiSource(settings), 5)
    assert torch.equal(first.x0, again.x0)
    assert first.x0.abs().max() <= 1
    assert len(np.unique(first.y.numpy())) > 1


def test_what_an_export_needs_is_known_before_the_training(tmp_path: Path) -> None:
    settings, training = config(), tmp_path / "t"
    with pytest.raises(ResourceError, match="parent folder"):
        check_export(settings, training, tmp_path / "no" / "p", False)
    with pytest.raises(BadRequest, match="is the folder of the training"):
        check_export(settings, training, training, True)
    with pytest.raises(BadRequest, match="coarse stage"):
        check_export(config(coarse_steps=12), training, tmp_path / "p", False)
    check_export(settings, training, tmp_path / "p", False)


def test_a_training_cut_off_before_its_rate_falls_is_the_beginning_of_it(tmp_path: Path) -> None:
    """What scripts/unfinished relies on, in two goes; there is no other way than not to fall."""
    whole = config(steps=12, decay_steps=4, coarse_steps=3, save_every=4)
    run(whole, tmp_path / "whole")
    for steps in (4, 8):
        run(whole.model_copy(update={"steps": steps, "decay_steps": 0}), tmp_path / "cut")
    mine, theirs = (load_checkpoint(tmp_path / name / "ckpt-0000008") for name in ("cut", "whole"))
    for part in ("model", "ema", "optimizer"):
        assert same(getattr(mine, part), getattr(theirs, part))
