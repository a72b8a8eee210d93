"""Q, K and log-sum-exp of the attention calls of a run: read from disk, the last ones kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from ditscope.core.axes import Branch
from ditscope.runs.attention_rows import Operands
from ditscope.runs.chunks import widen
from ditscope.runs.files import RunFiles
from ditscope.runs.layout import Layout

CACHE_BYTES = 256 * 2**20

Load = Callable[[int, Branch, int, int], Operands]
"""Step, branch, sample and layer to operands."""


class OperandsCache:
    """What `load` returned last, at most `CACHE_BYTES` and at least one; safe for threads."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._kept: OrderedDict[tuple[int, Branch, int, int], Operands] = OrderedDict()
        self._lock = threading.Lock()  # also keeps two threads from replaying the same step

    def get(self, step: int, branch: Branch, sample: int, layer: int) -> Operands:
        """The operands of one call. Raises what `load` raises."""
        place = (step, branch, sample, layer)
        with self._lock:
            if place not in self._kept:
                self._kept[place] = self._load(*place)
                while len(self._kept) > 1 and self._nbytes() > CACHE_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(place)
            return self._kept[place]

    def _nbytes(self) -> int:
        return sum(operands.nbytes for operands in self._kept.values())


def stored(
    files: RunFiles, layout: Layout, step: int, branch: Branch, sample: int, layer: int
) -> Operands:
    """The operands of a call whose Q and K were kept, from three reads. Raises BadRun.

    If the run was edited, they are those of the edited call.
    """
    manifest, branch_index = layout.manifest, layout.branches.index(branch)
    parts = {}
    for name, spec in layout.qk.items():
        group, inside = divmod(sample, spec.samples_per_chunk)
        position = {"step": manifest.qk_steps.index(step), "layer": layer, "sample": group}
        (file,) = spec.chunk_files(**position)
        # (step, branch, sample, layer, head, ...)
        parts[name] = files.chunk(spec, file)[0, branch_index, inside, 0]
    numbers = manifest.qk_dtype or "float32"
    return Operands(
        q=widen(parts["q"], numbers),
        k=widen(parts["k"], numbers),
        lse=widen(parts["lse"], "float32"),
        scale=(manifest.steps[step].scales or manifest.scales)[layer],
        source="stored",
    )
