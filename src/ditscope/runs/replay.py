"""The one way back from a run to its network: attention that was not stored is computed again.

The network is loaded on the first replay. It needs torch; all other reading does not.
"""

from __future__ import annotations

import importlib

import numpy as np

from ditscope.core.axes import Branch
from ditscope.errors import BadCheckpoint, BadRequest, ResourceError
from ditscope.runs.attention_rows import Operands

REPLAYER = "ditscope.sampling.replay"
"""Named and not imported: everything here stays below the network (see the layer contract)."""

KEEP = "record them: ditscope sample --attention-debug --qk-steps 5"


def replay(run: object, *, step: int, branch: Branch, sample: int, layer: int) -> Operands:
    """The operands of one attention call, from running that one step again on its stored latent.

    `run` is the open `ditscope.runs.reader.Run`; it is only handed on.

    Raises:
        BadCheckpoint, BadRequest: the model is gone, or its weights are not those of the run.
        ResourceError: torch is not installed here.
    """
    try:
        module = importlib.import_module(REPLAYER)
    except ModuleNotFoundError as reason:
        raise ResourceError(
            f"Q and K of step {step} are not stored, so it must be run again, and {reason.name} "
            "is not installed",
            fix=f"open it where torch is installed, or {KEEP}",
        ) from None
    try:
        q, k, lse, scale = module.replay_step(run, step, branch, sample, layer)
    except (BadCheckpoint, BadRequest) as reason:
        why = f"Q and K of step {step} are not stored, so its network is needed; or {KEEP}"
        reason.fix = "\n  ".join(filter(None, (reason.fix, why)))
        raise
    q, k, lse = (np.asarray(values, dtype=np.float32) for values in (q, k, lse))
    return Operands(q, k, lse, float(scale), "replayed")
