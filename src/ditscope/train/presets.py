"""Settings that belong together, by name; anything else a command says goes before them."""

from __future__ import annotations

from collections.abc import Mapping

from ditscope.errors import BadRequest, foreign

PRESETS: Mapping[str, Mapping[str, object]] = {
    # A calm recipe for new data: warm-up, then cosine annealing, with some weight decay.
    "article": {
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 0.03,
        "schedule": "cosine",
        "warmup_steps": 500,
        "batch_size": 64,
        "preview_every": 1000,
        "health_every": 500,
        "process": {"kind": "ddpm"},
    },
    # Peebles and Xie, arXiv:2212.09748: nothing but AdamW at one rate, in float32.
    "dit-paper": {
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_steps": 0,
        "clip_norm": 0.0,
        "ema_decay": 0.9999,
        "ema_ramp": False,
        "batch_size": 256,
        "precision": "fp32",
        "process": {"kind": "ddpm"},
    },
}
DEFAULT = "article"

OBJECTIVES: Mapping[str, Mapping[str, object]] = {
    "ddpm": {"kind": "ddpm"},
    "flow": {"kind": "flow", "prediction": "velocity"},
    "flow-x": {"kind": "flow", "prediction": "x"},
}
"""Noise process and what the network predicts: noise and its variance, velocity, the picture."""


def named(kind: str, table: Mapping[str, Mapping[str, object]], name: str) -> dict[str, object]:
    """The entry called `name`. Raises BadRequest, with the field `kind`, if there is none."""
    if name not in table:
        raise BadRequest(f"found {foreign(name)!r}", field=kind, expected=", ".join(table))
    return dict(table[name])
