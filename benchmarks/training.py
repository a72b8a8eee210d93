"""One training step of DiT-S/2 at 256 tokens: ours against the published recipe's, same weights.

The published step, written anew from what is known of it: float32, AdamW at 1e-4 without decay, the
mean of the noise error and the variational bound, gradients not clipped, and after the optimiser
an average of the weights (0.9999), tensor by tensor, each scaled and then added to. Attention is
the fused kernel, as in the timm layer that it uses. Timesteps and noise are drawn in the step, and
labels dropped. Both steps take ready latents, so that none waits for data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from benchmarks.paired import paired
from ditscope.diffusion.ddpm import DDPMProcess, q_sample
from ditscope.diffusion.losses import ddpm_loss
from ditscope.model.dit import DiT
from ditscope.train.batches import Batch
from ditscope.train.config import TrainConfig
from ditscope.train.learner import Learner
from ditscope.train.request import Request, resolve

ROWS = 8
"""A CPU is busy with so many; the optimiser and the average cost the same for any number."""


def settings(precision: Literal["bf16", "fp32"]) -> TrainConfig:
    """The published recipe on latents of 32 x 32, in our configuration."""
    config, _ = resolve(
        Request(
            model="DiT-S/2",
            preset="dit-paper",
            image_size="32",
            single={"batch_size": ROWS, "precision": precision},
            settings=["model.in_channels=4"],
        )
    )
    return config


def ours(precision: Literal["bf16", "fp32"], batch: Batch) -> Callable[[], float]:
    """A step of `ditscope train`."""
    learner = Learner(settings(precision))
    return lambda: learner.advance(batch).loss


def published(batch: Batch, *, autocast: bool) -> Callable[[], float]:
    """A step as the published recipe takes it; with autocast, as its users make it bfloat16."""
    config = settings("fp32")
    torch.manual_seed(config.seed)
    model = DiT(config.model).train()
    average = DiT(config.model).eval().requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    tables = DDPMProcess().tables()

    def step() -> float:
        t = torch.randint(0, 1000, (ROWS,))
        noise = torch.randn_like(batch.x0)
        noisy = q_sample(tables, batch.x0, t, noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(noisy, t, batch.y)
        loss = ddpm_loss(tables, output.float(), batch.x0, noisy, t, noise).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            slow = dict(average.named_parameters())
            for name, parameter in model.named_parameters():
                slow[name].mul_(0.9999).add_(parameter, alpha=1 - 0.9999)
        return loss.item()

    return step


def main(pairs: int) -> None:
    """Print the first losses, and the ratios: like for like, then bfloat16 to float32."""
    torch.manual_seed(0)
    batch = Batch(0, range(ROWS), range(ROWS), torch.randn(ROWS, 4, 32, 32), torch.arange(ROWS))
    steps = {
        "published, float32": published(batch, autocast=False),
        "ditscope, float32": ours("fp32", batch),
        "published, bfloat16 autocast": published(batch, autocast=True),
        "ditscope, bfloat16": ours("bf16", batch),
    }
    first = {name: step() for name, step in steps.items()}
    print("  first losses: " + ", ".join(f"{name} {loss:.3f}" for name, loss in first.items()))
    names = list(steps)
    for pair in (names[:2], names[2:], [names[0], names[3]]):
        for ratio in paired({name: steps[name] for name in pair}, pairs):
            speed = ROWS / ratio.seconds
            print(f"  {ratio.line()}   {speed:.2f} pictures/s")
