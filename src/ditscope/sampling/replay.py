"""Running one recorded step again, to see attention that was not stored.

The step is repeated on its stored latent, under the edits of the run, with the very batch it was
recorded in, since another batch size may take another kernel and round differently.

Shapes: B rows of one batch, H heads, N tokens, K head width.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ditscope.attention.capture import Capture, Seen
from ditscope.attention.edits.forward import EditedForward
from ditscope.attention.edits.kinds import AnyEdit, edits_of
from ditscope.core.axes import Branch
from ditscope.core.manifest import ModelRecord
from ditscope.errors import BadCheckpoint, BadRequest, BadRun
from ditscope.model.config import DiTConfig
from ditscope.pipeline import DType, Pipeline, load
from ditscope.runs.layout import MANIFEST
from ditscope.runs.reader import Run

Operands = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], float]
"""q (H, N, K), k (H, N, K), log-sum-exp (H, N), softmax scale."""

KEPT_FORWARDS = 4
"""Replayed forwards of one sample that are kept: looking at many layers of a step costs one."""

_forwards: OrderedDict[tuple[str, int, int], dict[tuple[Branch, int], Operands]] = OrderedDict()
"""By digest of the run, step and sample."""

_lock = threading.Lock()


def replay_step(run: Run, step: int, branch: Branch, sample: int, layer: int) -> Operands:
    """What the attention call of one sample at one step computed with, from running it again.

    Raises:
        BadCheckpoint: the model is gone, or its weights are not those of the run.
        BadRun: the run was edited in a way that is unknown here or does not fit its sites.
    """
    place = (run.digest, step, sample)
    with _lock:
        if place not in _forwards:
            _forwards[place] = _forward(run, step, sample)
            while len(_forwards) > KEPT_FORWARDS:
                _forwards.popitem(last=False)
        _forwards.move_to_end(place)
        return _forwards[place][branch, layer]


@torch.inference_mode()
def _forward(run: Run, step: int, sample: int) -> dict[tuple[Branch, int], Operands]:
    """Repeat the forward that `sample` was part of; the operands of its own rows."""
    manifest, edits = run.manifest, _edits(run)
    pipe = _pipeline(manifest.model)
    record = manifest.steps[step]
    batch = next(batch for batch in manifest.batches if sample in batch)
    found: dict[tuple[Branch, int], Operands] = {}

    def keep(seen: Seen) -> None:
        attention = seen.operands
        for half, branch in enumerate(record.branches):
            row = half * len(batch) + batch.index(sample)
            parts = (attention.q, attention.k, seen.lse)
            q_row, k_row, lse_row = (part[row].float().cpu().numpy() for part in parts)
            found[branch, seen.site.index] = (q_row, k_row, lse_row, attention.scale)

    latent = torch.from_numpy(run.latents.isel(step=step, sample=list(batch)).values)
    labels = {
        "cond": [manifest.labels[index].index for index in batch],
        "uncond": [manifest.guidance.null_label] * len(batch),
    }
    y = torch.tensor([label for branch in record.branches for label in labels[branch]])
    watching = Capture(manifest.sites, (), on_attention=keep)
    with watching, EditedForward(edits, manifest.sites, step):
        pipe.network(
            latent.repeat(len(record.branches), 1, 1, 1), record.timestep, y.to(pipe.device)
        )
    return found


def _edits(run: Run) -> tuple[AnyEdit, ...]:
    """What was done to the attention of the run. Raises BadRun."""
    file = run.path / MANIFEST
    edits = edits_of(run.manifest.edits, file=file)
    for index, edit in enumerate(edits):
        try:
            edit.check(run.manifest.sites, len(run.manifest.steps))
        except BadRequest as reason:
            raise BadRun(
                reason.problem, file=file, field=f"edits.{index}", expected=reason.expected
            ) from None
    return edits


def _pipeline(model: ModelRecord) -> Pipeline:
    is_file = Path(model.source).is_file()  # a folder says its number of heads, a file cannot
    num_heads = DiTConfig.model_validate_json(json.dumps(model.config)).num_heads
    place = (model.source, model.weights, num_heads if is_file else None, model.dtype, model.device)
    return _loaded(*place, model.weights_sha256)


@lru_cache(maxsize=1)
def _loaded(
    source: str,
    weights: str | None,
    num_heads: int | None,
    dtype: DType,
    device: str,
    weights_sha256: str,
) -> Pipeline:
    """The pipeline of a run, its weights compared once: hashing them takes as long as a forward."""
    pipe = load(source, weights=weights, num_heads=num_heads, dtype=dtype, device=device)
    if pipe.weights_sha256 != weights_sha256:
        raise BadCheckpoint(
            "its weights are not those the run was computed with",
            file=source,
            field="weights_sha256",
            fix="put the original weights back, or record the run again; weights that were changed "
            "in memory, also by two conversions, are in no file",
        )
    return pipe
