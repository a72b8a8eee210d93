"""What a step learns from: noise levels, first losses, parts of a batch, rates."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ditscope.errors import ResourceError
from ditscope.model.dit import DiT
from ditscope.train import learner
from ditscope.train.loop import Training
from ditscope.train.objective import NoisyBatch, Objective
from tests.train.tiny import MODEL, config, run

DDPM = {"model": {**MODEL, "in_channels": 4, "learn_sigma": True}, "process": {"kind": "ddpm"}}


def untrained_bound() -> np.ndarray:
    """Expected KL of an untrained network on N(0, 1) latents, bits, at t = 1 .. 999, in float64.

    Its noise is 0, so its mean is off by A sqrt(1 - abar) / sqrt(abar) times the noise; its
    log-variance is half way between the bounds.
    """
    betas = np.linspace(1e-4, 2e-2, 1000)
    abar = np.cumprod(1 - betas)
    before = np.r_[1, abar[:-1]]
    low = np.log((betas * (1 - before) / (1 - abar))[1:])
    middle = (low + np.log(betas[1:])) / 2
    off = (betas * np.sqrt(before) / (1 - abar)) ** 2 * (1 - abar) / abar
    nats = (middle - low + np.exp(low - middle) - 1 + off[1:] * np.exp(-middle)) / 2
    return nats / np.log(2)


def test_the_first_loss_is_the_published_one() -> None:
    """1.000 of noise and a bound of 0.013 to 0.016: how often t = 0 (2 bits) is drawn decides."""
    settings = config(**DDPM)
    network, objective = DiT(settings.model).eval(), Objective(settings)
    torch.manual_seed(0)
    x0, noise = torch.randn(2, 1000, 4, 16, 16).unbind()  # every timestep once
    with torch.no_grad():
        losses = objective.losses(
            network, NoisyBatch(x0, torch.zeros(1000, dtype=torch.long), torch.arange(1000), noise)
        )
    squared = noise.square().flatten(1).mean(dim=1)  # the network says 0
    bound = (losses - squared).numpy()
    assert abs(squared.mean() - 1.000) < 0.002
    np.testing.assert_allclose(bound[1:], untrained_bound(), rtol=0.2, atol=1e-6)
    assert abs(bound[1:].mean() / untrained_bound().mean() - 1) < 0.01
    assert 0.013 < bound.mean() < 0.0165 and 1.9 < bound[0] < 2.1


def quantiles_of(settings_changes: dict[str, object]) -> tuple[torch.Tensor, torch.Tensor]:
    objective = Objective(config(**settings_changes))
    torch.manual_seed(0)
    levels = objective.draw(torch.zeros(50_000, 1, 1, 1), torch.zeros(50_000).long()).level
    return levels, torch.quantile(levels.double(), torch.tensor([0.1, 0.5, 0.9]).double())


def test_noise_levels_of_a_flow() -> None:
    _, uniform = quantiles_of({"timestep_sampling": "uniform"})
    torch.testing.assert_close(uniform, torch.tensor([0.1, 0.5, 0.9]).double(), atol=0.01, rtol=0)
    for name in ("auto", "logit-normal"):
        levels, found = quantiles_of(
            {"timestep_sampling": name, "level_mean": -0.5, "level_std": 0.8}
        )
        normal = torch.tensor([-1.2815516, 0.0, 1.2815516]).double()
        torch.testing.assert_close(found, torch.sigmoid(-0.5 + 0.8 * normal), atol=0.01, rtol=0)
        assert 0 < levels.min() and levels.max() < 1


def test_timesteps_of_a_ddpm() -> None:
    for name in ("auto", "uniform"):
        levels, uniform = quantiles_of({**DDPM, "timestep_sampling": name})
        assert levels.dtype == torch.int64 and (levels.min(), levels.max()) == (0, 999)
        torch.testing.assert_close(
            uniform, torch.tensor([100.0, 500, 900]).double(), atol=12, rtol=0
        )
    levels, found = quantiles_of({**DDPM, "timestep_sampling": "logit-normal"})
    normal = torch.tensor([-1.2815516, 0.0, 1.2815516]).double()
    torch.testing.assert_close(found, 1000 * torch.sigmoid(normal), atol=12, rtol=0)
    assert 0 <= levels.min() and levels.max() <= 999


def test_labels_are_dropped_at_their_rate() -> None:
    objective = Objective(config())
    torch.manual_seed(0)
    null = config().model.null_label
    y = torch.arange(20_000) % null
    dropped = objective.draw(torch.zeros(20_000, 1, 1, 1), y).y
    assert set(dropped[dropped != y].tolist()) == {null}
    assert abs((dropped == null).float().mean() - 0.1) < 0.01
    never = {**MODEL, "class_dropout_prob": 0.0}
    kept = Objective(config(model=never)).draw(torch.zeros(100, 1, 1, 1), y[:100]).y
    assert torch.equal(kept, y[:100])


def gradients(folder: Path, **changes: object) -> tuple[float, torch.Tensor]:
    """Loss and gradients of one batch of a network whose gates are open."""
    with Training(config(**changes), folder) as training:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in training.model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.05)
        training.learner.worker.follow()
        noisy = training.learner.objective.draw(torch.randn(8, 3, 16, 16), torch.arange(8))
        loss = training.learner.gradients(noisy)
        found = [p.grad for p in training.model.parameters() if p.grad is not None]
        return loss.item(), torch.cat([grad.flatten() for grad in found])


def test_parts_of_a_batch_add_up(tmp_path: Path) -> None:
    loss, whole = gradients(tmp_path / "whole", precision="fp32")
    for parts in (2, 8):
        found, split = gradients(tmp_path / str(parts), precision="fp32", accumulate=parts)
        assert math.isclose(found, loss, rel_tol=1e-6)
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-6)


def test_blocks_that_are_computed_twice_give_the_same(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        loss, plain = gradients(tmp_path / f"{precision} plain", precision=precision)
        again, twice = gradients(
            tmp_path / f"{precision} twice", precision=precision, grad_checkpoint=True
        )
        assert again == loss
        if precision == "fp32":
            assert torch.equal(twice, plain)
        else:  # other gradients of attention: see `FastBackward`
            assert (twice - plain).norm() < 2**-7 * plain.norm()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # both are torch's own
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_training_is_the_same_but_for_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Losses and weights of a few steps; what is looked at is looked at uncompiled."""
    if backend == "inductor" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("there is no C++ compiler, which torch.compile needs on a CPU")
    monkeypatch.setattr(learner, "BACKEND", backend)
    asked = config(precision="fp32", optimizer="adamw", steps=4, log_every=1, health_every=4)
    plain, expected = run(asked, tmp_path / "plain")
    compiled, found = run(asked.model_copy(update={"compile": True}), tmp_path / "compiled")
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)
    names = plain.model.state_dict().keys()
    assert compiled.model.state_dict().keys() == compiled.ema.state_dict().keys() == names
    assert (tmp_path / "compiled" / "log.jsonl").read_text().count('"attention"') == 1


def test_a_compiler_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ResourceError, match=r"compile: .* there is no no-such-compiler\n.*CXX"):
        Training(config(compile=True), tmp_path / "t")


def test_blocks_that_are_computed_twice_keep_less() -> None:
    def kept(grad_checkpoint: bool) -> int:
        """Bytes that the forward keeps for the backward, parameters aside."""
        network = DiT(config(model={**MODEL, "depth": 6}).model)
        network.grad_checkpoint = grad_checkpoint
        owned = {parameter.data_ptr() for parameter in network.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in owned:
                sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(torch.randn(8, 3, 16, 16), torch.rand(8), torch.arange(8))
        assert output.requires_grad
        return sum(sizes.values())

    assert kept(True) < 0.3 * kept(False)


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_annealing_is_that_of_torch(warmup: int) -> None:
    settings = config(schedule="cosine", warmup_steps=warmup, steps=110)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=110 - warmup)
    for step in range(warmup, 110):
        assert math.isclose(settings.rate(step), optimizer.param_groups[0]["lr"], abs_tol=1e-9)
        optimizer.step()
        reference.step()
    rising = [settings.rate(step) for step in range(warmup)]
    assert rising == [(step + 1) / (warmup + 1) for step in range(warmup)]
