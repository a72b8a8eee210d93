"""The one way back from a run to its network: attention that was not stored is computed again.

The network is loaded on the first replay. It needs torch; all other reading does not, and neither
does attention that a replay has left in the cache of the run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from ditscope.errors import BadCheckpoint, BadRequest, ResourceError
from ditscope.runs.attention_rows import Operands
from ditscope.runs.operands import Place
from ditscope.runs.replay_cache import ReplayCache

REPLAYER, WHOLE_REPLAYER = "ditscope.sampling.replay", "ditscope.sampling.replay_whole"
"""Named and not imported: everything here stays below the network (see the layer contract)."""

KEEP = "record them: ditscope sample --attention-debug --qk-steps 5"


@dataclass(frozen=True)
class Replayed:
    """What came of running a whole run again: see `ditscope.sampling.replay_whole`."""

    steps: int  # evaluations that were repeated
    exact_steps: int  # of them, those whose outputs and next latents have every recorded bit
    difference: float  # largest of a latent from the stored one
    elsewhere: str  # where it was recorded and replayed, if not on the same kind of machine
    problem: str | None  # more than rounding

    @property
    def exact(self) -> bool:
        """Whether it is the recorded run, bit for bit."""
        return self.exact_steps == self.steps

    def __str__(self) -> str:
        text = f"{self.exact_steps} of {self.steps} steps bit for bit"
        if not self.exact:
            text += f", latents within {self.difference:.1e}"
        return f"{text} ({self.elsewhere})" if self.elsewhere else text


def replay(
    run: object, cache: ReplayCache, *, step: int, sample: int, layer: int
) -> Mapping[Place, Operands]:
    """The operands of attention calls, from running a step again on its stored latent.

    Those of all branches of one sample and layer, and of other samples that were computed with it.
    `run` is the open `ditscope.runs.reader.Run`; it is only handed on.

    Raises:
        BadCheckpoint, BadRequest: the model is gone, or its weights are not those of the run.
        ResourceError: torch is not installed here.
        BadRun: the network does not do what it did when the run was recorded.
    """
    cached = cache.get(step, sample, layer)
    if cached is not None:
        return cached
    needed = f"Q and K of step {step} are not stored, so it must be run again"
    replayer = _loaded(REPLAYER, needed)
    try:
        found: Mapping[Place, Operands] = replayer.replay_step(run, step, sample)
    except (BadCheckpoint, BadRequest) as reason:
        why = f"Q and K of step {step} are not stored, so its network is needed; or {KEEP}"
        reason.fix = "\n  ".join(filter(None, (reason.fix, why)))
        raise
    cache.put(found)
    return {place: operands for place, operands in found.items() if place[3] == layer}


def replay_run(run: object) -> Replayed:
    """Run every step of `run` again, and the sampler between them. Errors as `replay`."""
    return _loaded(WHOLE_REPLAYER, "the run is to be run again").replay_whole(run)


def _loaded(replayer: str, needed: str) -> ModuleType:
    try:
        return importlib.import_module(replayer)
    except ModuleNotFoundError as reason:
        raise ResourceError(
            f"{needed}, and {reason.name} is not installed",
            fix=f"open it where torch is installed, or {KEEP}",
        ) from None
