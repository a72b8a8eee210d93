"""How attention fares during a training, from the watch: entropy, sinks, heads that do nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ditscope.attention.watch import watch

UNIFORM = 0.99
"""A head is called dead from this share of the largest entropy, log(keys), on: it takes the mean
over all tokens, whatever the query. An untrained network has only such heads."""


@dataclass(frozen=True)
class LayerHealth:
    """One attention layer, over its heads and the samples of one forward."""

    site: str
    entropy: float  # mean over heads, nats
    received_max: float  # the largest share of all attention that one token receives
    dead_heads: int


def attention_health(network: nn.Module, forward: Callable[[], object]) -> list[LayerHealth]:
    """The health of every attention layer of `network` in one call of `forward`, without grad."""
    with torch.no_grad(), watch(network, metrics=("entropy", "received_max"), keep=()) as seen:
        forward()
    stats = seen.stats.isel(forward=-1).mean("sample")  # (site, head)
    received = seen.stats["received_max"].isel(forward=-1).max(("sample", "head"))
    found = []
    for site in seen.sites:
        entropy = stats["entropy"].sel(site=site.name)
        found.append(
            LayerHealth(
                site=site.name,
                entropy=float(entropy.mean()),
                received_max=float(received.sel(site=site.name)),
                dead_heads=int((entropy > UNIFORM * math.log(site.keys)).sum()),
            )
        )
    return found
