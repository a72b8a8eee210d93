"""NaN or Inf in a step: where it came from, found by running the forward once more.

Shapes: B rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditscope.errors import listed

MOST_SHOWN = 5


@dataclass(frozen=True)
class NonFinite:
    """A step that was not taken. Numbers are text, since JSON has no NaN."""

    step: int
    loss: str
    gradient_norm: str
    pictures: tuple[int, ...]  # those whose own loss is not finite, or all of them if none is so
    first: str | None  # the first module, in the order of the forward, with such an output
    largest: tuple[tuple[str, str], ...]  # modules with the largest |activation|, and that number

    def __str__(self) -> str:
        text = (
            f"loss {self.loss} and gradient norm {self.gradient_norm} at step {self.step}, "
            f"pictures {listed(self.pictures)}"
        )
        if self.first:
            text += f"; first NaN or Inf comes out of {self.first}"
        shown = ", ".join(f"{name} {value}" for name, value in self.largest)
        return f"{text}; largest activations: {shown}"


@dataclass(frozen=True)
class Seen:
    """What one process sees when it looks again at its rows of such a step."""

    pictures: tuple[int, ...]
    bad: tuple[int, ...]  # those whose own loss is not finite
    sizes: dict[str, float]  # largest |output| of every module, in the order of the forward


def look_again(network: nn.Module, pictures: range, losses: Callable[[], Tensor]) -> Seen:
    """Find what is not finite.

    Args:
        network: whose modules are looked at.
        pictures: of the batch, in order.
        losses: runs `network` on the batch, with the same random numbers, and returns the losses
            (B,).
    """
    with torch.no_grad(), _largest_outputs(network) as sizes:
        rows = losses()
    bad = torch.nonzero(~torch.isfinite(rows)).flatten().tolist()
    return Seen(tuple(pictures), tuple(pictures[row] for row in bad), sizes)


def explain(step: int, loss: float, gradient_norm: float, seen: Sequence[Seen]) -> NonFinite:
    """Put together what all processes saw of a step; `gradient_norm` is that before clipping."""
    sizes: dict[str, float] = {}
    for each in seen:
        for name, size in each.sizes.items():
            sizes[name] = max(sizes.get(name, 0.0), size, key=_rank)
    order = sorted(sizes, key=lambda name: _rank(sizes[name]), reverse=True)
    bad = tuple(picture for each in seen for picture in each.bad)
    return NonFinite(
        step=step,
        loss=f"{loss:g}",
        gradient_norm=f"{gradient_norm:g}",
        pictures=bad or tuple(picture for each in seen for picture in each.pictures),
        first=next((name for name, size in sizes.items() if not math.isfinite(size)), None),
        largest=tuple((name, f"{sizes[name]:.3g}") for name in order[:MOST_SHOWN]),
    )


def _rank(size: float) -> float:
    return math.inf if math.isnan(size) else size


@contextmanager
def _largest_outputs(network: nn.Module) -> Iterator[dict[str, float]]:
    """Largest |output| of every module without children that runs in the block, in that order."""
    sizes: dict[str, float] = {}

    def look(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            size = output.detach().float().abs().amax().item()
            sizes[name] = max(sizes.get(name, 0.0), size, key=_rank)

        return hook

    leaves = [
        (name, module) for name, module in network.named_modules() if not [*module.children()]
    ]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()
