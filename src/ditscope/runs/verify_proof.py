"""Computing the proof of a run again from what is on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditscope.errors import foreign
from ditscope.runs import proof
from ditscope.runs.chunks import widen
from ditscope.runs.files import RunFiles
from ditscope.runs.layout import Layout
from ditscope.runs.proof import Witness


@dataclass
class Proven:
    """What has been rebuilt so far."""

    num_rows: int = 0
    largest: dict[str, float] = field(default_factory=dict)  # error by name

    def add(self, name: str, found: NDArray[np.float32]) -> None:
        """Note the errors of some heads."""
        self.largest[name] = max(self.largest.get(name, 0.0), float(found.max()))


def proof_checks(
    files: RunFiles, layout: Layout, step: int, proven: Proven
) -> Iterator[Callable[[], Iterator[str]]]:
    """What to check of the proof of a step: what was recorded, and where Q and K are, all anew."""
    if not layout.manifest.steps[step].proven_queries:
        return
    recorded = partial(_recorded, files, layout, step)
    yield partial(_within_rounding, layout, step, recorded)
    if step not in layout.manifest.qk_steps:
        return
    for site in layout.manifest.sites:
        for samples in _chunks_of_samples(layout):
            yield partial(_again, files, layout, _Part(step, site.index, samples), recorded, proven)


class _Part(NamedTuple):
    step: int
    layer: int
    samples: range


def _chunks_of_samples(layout: Layout) -> Iterator[range]:
    """The fewest samples at a time that are whole chunks of every array."""
    size = math.lcm(*(spec.samples_per_chunk for spec in layout.qk.values()))
    for first in range(0, len(layout.manifest.labels), size):
        yield range(first, first + size)


def _recorded(files: RunFiles, layout: Layout, step: int) -> dict[str, NDArray[Any]]:
    """(branch, sample, layer, head) by name."""
    for spec in layout.proof.values():
        files.expect_kept(*spec.chunk_files(step=step))
    return {name: files.block(spec, step=step) for name, spec in layout.proof.items()}


def _within_rounding(
    layout: Layout, step: int, recorded: Callable[[], dict[str, NDArray[Any]]]
) -> Iterator[str]:
    for name, values in recorded().items():
        measured = values[~np.isnan(values)]
        if not measured.size:
            yield f"step {step}: nothing of it was rebuilt, though its proof is listed"
        elif proof.broken(name, measured, layout.manifest.model.dtype):
            yield f"step {step}: {proof.ERRORS[name]}: {foreign(measured.max())}"


def _again(
    files: RunFiles,
    layout: Layout,
    part: _Part,
    recorded: Callable[[], dict[str, NDArray[Any]]],
    proven: Proven,
) -> Iterator[str]:
    """Rebuild the proven queries of one layer, of some samples."""
    manifest, (step, layer, samples) = layout.manifest, part
    record, numbers = manifest.steps[step], manifest.qk_dtype or "float32"
    evaluated = [layout.branches.index(branch) for branch in record.branches]
    position = {"step": manifest.qk_steps.index(step), "layer": layer}
    parts = {  # (branch, sample, head, ...)
        name: files.block(spec, samples, **position)[evaluated] for name, spec in layout.qk.items()
    }
    queries = list(record.proven_queries)
    found = proof.errors(
        widen(parts["q"][..., queries, :], numbers),
        widen(parts["k"], numbers),
        widen(parts["lse"][..., queries], "float32"),
        Witness(widen(parts["values"], "float32"), widen(parts["outputs"], "float32")),
        (record.scales or manifest.scales)[layer],
    )
    heads = manifest.sites[layer].heads
    where = f"{files.root}: step {step}, layer {layer}"
    stored = recorded()
    for name, values in found.items():
        proven.add(name, values)
        if proof.broken(name, values, numbers):
            yield f"{where}: {proof.ERRORS[name]}: {float(values.max()):.1e}"
        was = stored[name][evaluated, samples.start : samples.stop, layer, :heads]
        if not (np.abs(values - was) <= proof.REPEATED_WITHIN + 0.01 * np.abs(was)).all():
            yield f"{where}: {name} of its proof is not what was recorded"
    proven.num_rows += len(evaluated) * len(samples) * heads * len(queries)
