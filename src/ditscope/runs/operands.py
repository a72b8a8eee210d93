"""Q, K and log-sum-exp of the attention calls of a run: read from disk, the last ones kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np

from ditscope.core.axes import Branch
from ditscope.runs.attention_rows import Operands
from ditscope.runs.files import RunFiles
from ditscope.runs.layout import Layout

CACHE_BYTES = 512 * 2**20
"""Holds eight pictures of the bundled model with guidance, six steps in float32 (403 MB): one more
analysis of the same run decodes nothing again."""

Place = tuple[int, Branch, int, int]
"""Step, branch, sample and layer of one attention call."""

Load = Callable[[int, Branch, int, int], Mapping[Place, Operands]]
"""A place to its operands, and to those of others that come with them."""


class OperandsCache:
    """What `load` returned last, at most `CACHE_BYTES` and at least one; safe for threads."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._kept: OrderedDict[Place, Operands] = OrderedDict()
        self._bytes = 0  # counted along: a sum over what is kept would be made at every miss
        self._lock = threading.Lock()  # also keeps two threads from replaying the same step

    def get(self, step: int, branch: Branch, sample: int, layer: int) -> Operands:
        """The operands of one call. Raises what `load` raises."""
        place = (step, branch, sample, layer)
        with self._lock:
            if place not in self._kept:
                for other, operands in self._load(*place).items():
                    replaced = self._kept.pop(other, None)
                    self._bytes += operands.nbytes - (replaced.nbytes if replaced else 0)
                    self._kept[other] = operands
                self._kept.move_to_end(place)
                while len(self._kept) > 1 and self._bytes > CACHE_BYTES:
                    self._bytes -= self._kept.popitem(last=False)[1].nbytes
            self._kept.move_to_end(place)
            return self._kept[place]


def is_stored(files: RunFiles, layout: Layout, step: int, sample: int, layer: int) -> bool:
    """Whether Q, K and log-sum-exp of a call were kept, and not lost since."""
    if step not in layout.manifest.qk_steps:
        return False
    place = {"step": layout.manifest.qk_steps.index(step), "layer": layer}
    return not any(
        name in files.lost
        for spec in (layout.qk[part] for part in ("q", "k", "lse"))
        for name in spec.chunk_files(**place, sample=sample // spec.samples_per_chunk)
    )


def stored(
    files: RunFiles, layout: Layout, step: int, branch: Branch, sample: int, layer: int
) -> dict[Place, Operands]:
    """The operands of a call whose Q and K were kept, from three reads. Raises BadRun.

    If the run was edited, they are those of the edited call. What else stands in the same chunks,
    other samples and the other branch, is returned with it: whoever looks at many maps would decode
    the chunks again for each.
    """
    manifest, parts = layout.manifest, {}
    together = range(len(manifest.labels))
    for name in ("q", "k", "lse"):
        spec = layout.qk[name]
        group = sample // spec.samples_per_chunk
        together = [other for other in together if other // spec.samples_per_chunk == group]
        position = {"step": manifest.qk_steps.index(step), "layer": layer, "sample": group}
        (file,) = spec.chunk_files(**position)
        # (step, branch, sample, layer, head, ...) to (sample, branch, head, ...)
        parts[name] = files.chunk(spec, file)[0, :, :, 0].swapaxes(0, 1)
    numbers = manifest.qk_dtype or "float32"
    found = {}
    for other in together:
        q, k, lse = (
            parts[name][other % layout.qk[name].samples_per_chunk] for name in ("q", "k", "lse")
        )
        for index, evaluated in enumerate(layout.branches):
            if evaluated in manifest.steps[step].branches:
                found[step, evaluated, other, layer] = Operands(
                    q=q[index],
                    k=k[index],
                    lse=lse[index].astype(np.float32, copy=False),
                    scale=(manifest.steps[step].scales or manifest.scales)[layer],
                    source="stored",
                    numbers=numbers,
                )
    return found
