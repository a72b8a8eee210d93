"""Which of the stored attention maps an analysis is about, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy
from numpy.typing import NDArray

from ditscope.analysis.map_measures import patch_maps
from ditscope.analysis.place import (
    checked_index,
    checked_sample,
    patch_layers,
    some_patch_layers,
)
from ditscope.analysis.recorded import RECORD_MAPS, chosen_layers, map_steps
from ditscope.core.axes import Branch
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest, listed
from ditscope.runs.reader import Run

MAX_NUMBERS = 2**23
"""Attention weights of one layer that are in memory together: 32 MiB."""


@dataclass(frozen=True)
class StoredMaps:
    """Layers and steps of one branch whose maps are stored, on one patch grid."""

    run: Run
    branch: Branch
    layers: tuple[int, ...]
    steps: tuple[int, ...]
    samples: tuple[int, ...]
    grid: TokenGrid

    @property
    def heads(self) -> int:
        """The greatest number of heads of these layers."""
        return max(self.run.manifest.sites[layer].heads for layer in self.layers)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of an array with one number for every head of every map: step, sample, layer, head."""
        return len(self.steps), len(self.samples), len(self.layers), self.heads

    def places(self) -> Iterator[tuple[tuple[int, int, int], int, int, int]]:
        """Every map: where it is in an array of `shape`; its sample, step and layer."""
        for (s, step), (l, layer) in product(enumerate(self.steps), enumerate(self.layers)):
            for i, sample in enumerate(self.samples):  # innermost: they share a read
                yield (s, i, l), sample, step, layer

    def rows(
        self,
        sample: int,
        step: int,
        layer: int,
        queries: NDArray[numpy.intp] | None = None,
    ) -> Iterator[tuple[NDArray[numpy.intp], NDArray[numpy.floating]]]:
        """Query patches (None: all) and their maps (head, query, patch), in blocks.

        Attention on patches alone: rows sum to 1 over them.
        """
        heads, count = self.run.manifest.sites[layer].heads, self.grid.count
        queries = numpy.arange(count) if queries is None else queries
        block = max(1, MAX_NUMBERS // (heads * count))
        for first in range(0, len(queries), block):
            chosen = queries[first : first + block]
            yield chosen, patch_maps(self.run, layer, step, chosen, sample, self.branch)

    def coords(self) -> dict[str, Any]:
        """Coordinates of axes step, sample, layer and head, with the noise level of a step."""
        records = [self.run.steps[step] for step in self.steps]
        return {
            "step": list(self.steps),
            "noise_level": ("step", [record.noise_level for record in records]),
            "sample": list(self.samples),
            "layer": list(self.layers),
            "head": list(range(self.heads)),
        }


def stored_maps(
    run: Run,
    *,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    samples: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> StoredMaps:
    """The maps of `layers` (None: all on the first patch grid) at `steps` (None: all stored ones).

    Of `samples`, or of all if that is None.

    Raises:
        BadRequest: the run stored no Q and K, or not of such a step; no layer has patches, or the
            layers differ in their grid.
    """
    stored = map_steps(run, branch)
    if layers is None:
        patched = some_patch_layers(run)
        first = run.manifest.sites[patched[0]].grid
        chosen = [layer for layer in patched if run.manifest.sites[layer].grid == first]
    else:
        chosen = chosen_layers(run, layers)
    grids = [run.manifest.sites[layer].grid for layer in chosen]
    grid = grids[0]
    if grid is None or grid.frames > 1 or any(other != grid for other in grids):
        raise BadRequest(
            "these layers do not share one patch grid of one picture",
            field="layers",
            expected=f"some of {listed(patch_layers(run))}",
        )
    every = range(len(run.manifest.labels))
    kept = every if samples is None else [checked_sample(run, sample) for sample in samples]
    return StoredMaps(run, branch, tuple(chosen), _steps(run, steps, stored), tuple(kept), grid)


def _steps(run: Run, steps: Iterable[int] | None, stored: list[int]) -> tuple[int, ...]:
    if steps is None:
        return tuple(stored)
    chosen = sorted({checked_index("step", step, len(run.manifest.steps)) for step in steps})
    lacking = [step for step in chosen if step not in stored]
    if lacking or not chosen:
        raise BadRequest(
            f"no Q and K are stored of step {listed(lacking)}" if chosen else "no step is named",
            field="steps",
            expected=f"some of {listed(stored, 20)}",
            fix=RECORD_MAPS,
        )
    return tuple(chosen)
