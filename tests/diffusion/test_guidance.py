"""Guidance: which channels are mixed, from which branch the rest comes, and when it is off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ditscope.diffusion.guidance import branches_at, guide
from ditscope.diffusion.schedule import Evaluation
from ditscope.errors import BadRequest

LABELS = torch.tensor([3, 7])
NULL = 10


def at_level(noise_level: float) -> Evaluation:
    return Evaluation(index=4, solver_step=4, evaluation=0, timestep=250.0, noise_level=noise_level)


class Network:
    """Output channel c of a row with label y is 100 y + c + x; remembers its calls."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.calls: list[tuple[int, float, list[int], tuple[str, ...]]] = []

    def __call__(self, x, timestep, labels, evaluation, branches) -> Tensor:
        self.calls.append((len(x), timestep, labels.tolist(), branches))
        channel = torch.arange(self.channels).view(1, -1, 1, 1)
        return 100.0 * labels.view(-1, 1, 1, 1) + channel + x[:, :1]


def expected(scale: float, guided: int, channels: int, x: Tensor) -> Tensor:
    channel = torch.arange(channels).view(1, -1, 1, 1) + x[:, :1]
    cond = 100.0 * LABELS.view(-1, 1, 1, 1) + channel
    uncond = 100.0 * NULL + channel
    mixed = uncond + scale * (cond - uncond)
    return torch.where(torch.arange(channels).view(1, -1, 1, 1) < guided, mixed, cond)


@pytest.mark.parametrize(("channels", "guided"), [(None, 4), (3, 3), (4, 4), (1, 1)])
@pytest.mark.parametrize("out", [4, 8])
def test_channels(channels: int | None, guided: int, out: int) -> None:
    """All latent channels by default, 3 on request; learned variances stay conditional."""
    network = Network(out)
    x = torch.randn(2, 4, 3, 3)
    found = guide(network, LABELS, NULL, 4.0, channels=channels)(x, at_level(0.5))
    torch.testing.assert_close(found, expected(4.0, guided, out, x))
    assert network.calls == [(4, 250.0, [3, 7, NULL, NULL], ("cond", "uncond"))]


def test_scale_1_needs_no_second_branch_and_scale_0_is_the_null_branch() -> None:
    network = Network(8)
    x = torch.randn(2, 4, 3, 3)
    plain = guide(network, LABELS, NULL, 1.0)(x, at_level(0.5))
    assert torch.equal(plain, network(x, 0.0, LABELS, None, ()))
    assert network.calls[0] == (2, 250.0, [3, 7], ("cond",))
    nothing = guide(network, LABELS, NULL, 0.0)(x, at_level(0.5))
    null = network(x, 0.0, torch.full_like(LABELS, NULL), None, ())
    torch.testing.assert_close(nothing[:, :4], null[:, :4])


@pytest.mark.parametrize(
    ("level", "on"), [(0.1, False), (0.2, True), (0.5, True), (0.8, True), (0.81, False)]
)
def test_no_unconditional_pass_outside_the_interval(level: float, on: bool) -> None:
    network = Network(4)
    x = torch.randn(2, 4, 3, 3)
    found = guide(network, LABELS, NULL, 4.0, interval=(0.2, 0.8))(x, at_level(level))
    assert network.calls[0][0] == (4 if on else 2)
    assert network.calls[0][3] == branches_at(at_level(level), 4.0, (0.2, 0.8))
    torch.testing.assert_close(found, expected(4.0 if on else 1.0, 4, 4, x))


def test_half_precision_outputs_are_mixed_in_float32() -> None:
    def network(x, timestep, labels, evaluation, branches):
        return torch.full((len(x), 4, 1, 1), 1.0, dtype=torch.bfloat16)

    found = guide(network, LABELS, NULL, 4.0)(torch.zeros(2, 4, 1, 1), at_level(0.5))
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"scale": -1.0}, "cfg_scale"),
        ({"scale": float("nan")}, "cfg_scale"),
        ({"scale": float("inf")}, "cfg_scale"),
        ({"scale": 4.0, "interval": (0.8, 0.2)}, "cfg_interval"),
        ({"scale": 4.0, "interval": (0.0, 1.5)}, "cfg_interval"),
        ({"scale": 4.0, "interval": (float("nan"), 1.0)}, "cfg_interval"),
        ({"scale": 4.0, "channels": 0}, "cfg_channels"),
        ({"scale": 4.0, "channels": 5}, "cfg_channels"),
    ],
)
def test_refused(options: dict, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        guide(Network(4), LABELS, NULL, **options)(torch.zeros(2, 4, 1, 1), at_level(0.5))
    assert caught.value.field == field
