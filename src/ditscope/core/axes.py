"""The names every axis has once it leaves the tensors (a position is never a meaning)."""

from __future__ import annotations

from typing import Literal

SAMPLE, STEP, BRANCH, LAYER, HEAD = "sample", "step", "branch", "layer", "head"
QUERY, KEY, TOKEN = "query", "key", "token"
PROVEN = "proven_query"
HEAD_WIDTH = "head_width"
WORD = "word"
Y, X, CHANNEL = "y", "x", "channel"

Branch = Literal["cond", "uncond"]
BRANCHES: tuple[Branch, Branch] = ("cond", "uncond")
"""Halves of classifier-free guidance, in the order in which they are stacked in a batch."""

STATISTIC_AXES = (STEP, BRANCH, SAMPLE, LAYER, HEAD)
"""Axes of every per-head statistic of a run."""
