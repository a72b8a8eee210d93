"""The arrays of a run with their axes named, as xarray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from ditscope.core.axes import BRANCH, CHANNEL, HEAD, LAYER, SAMPLE, STATISTIC_AXES, STEP, X, Y
from ditscope.core.manifest import StepRecord
from ditscope.runs.arrays import ArraySpec
from ditscope.runs.files import RunFiles
from ditscope.runs.layout import Layout


def of_heads(
    files: RunFiles, layout: Layout, specs: Mapping[str, ArraySpec], steps: tuple[StepRecord, ...]
) -> xarray.Dataset:
    """Arrays of `steps` by name: (step, branch, sample, layer, head) float32. Raises BadRun."""
    variables = {}
    for name, spec in specs.items():
        values = np.stack([files.block(spec, step=step.index) for step in steps])
        variables[name] = (STATISTIC_AXES, values, dict(spec.attributes))
    return xarray.Dataset(variables, _head_coords(layout, steps))


def tokens(files: RunFiles, layout: Layout, steps: tuple[StepRecord, ...]) -> xarray.Dataset:
    """Metrics of single tokens, with a last axis `token`; a step is read when it is looked at."""
    variables = {
        name: xarray.Variable(
            spec.dims,
            indexing.LazilyIndexedArray(_Steps(files, spec, len(steps))),
            dict(spec.attributes),
        )
        for name, spec in layout.tokens.items()
    }
    return xarray.Dataset(variables, _head_coords(layout, steps))


def latents(files: RunFiles, layout: Layout, steps: tuple[StepRecord, ...]) -> xarray.DataArray:
    """Network inputs (step, sample, channel, y, x); a step is read when it is looked at."""
    return xarray.DataArray(
        indexing.LazilyIndexedArray(_Steps(files, layout.latents, len(steps))),
        dims=(STEP, SAMPLE, CHANNEL, Y, X),
        coords={**step_coords(steps), **sample_coords(layout, range(len(layout.manifest.labels)))},
        name="latents",
        attrs={"long_name": "input of the network"},
    )


def final_latents(files: RunFiles, layout: Layout) -> xarray.DataArray:
    """Result of the sampling (sample, channel, y, x) float32. Raises BadRun."""
    return xarray.DataArray(
        files.block(layout.final),
        dims=(SAMPLE, CHANNEL, Y, X),
        coords=sample_coords(layout, range(len(layout.manifest.labels))),
        name="final",
        attrs={"long_name": "latent after the last step"},
    )


def images(pictures: NDArray[np.uint8], layout: Layout) -> xarray.DataArray:
    """Pictures (sample, y, x, channel) uint8."""
    return xarray.DataArray(
        pictures,
        dims=(SAMPLE, Y, X, CHANNEL),
        coords={
            **sample_coords(layout, range(len(layout.manifest.labels))),
            CHANNEL: ["red", "green", "blue"],
        },
        name="images",
    )


def masks(files: RunFiles, layout: Layout, spec: ArraySpec) -> xarray.DataArray:
    """Masks of the objects (sample, y, x) float32."""
    return xarray.DataArray(
        files.block(spec),
        dims=(SAMPLE, Y, X),
        coords=sample_coords(layout, range(len(layout.manifest.labels))),
        name="masks",
        attrs=dict(spec.attributes),
    )


class _Steps(BackendArray):
    """An array of the first `num_steps` steps, one read per step asked for."""

    def __init__(self, files: RunFiles, spec: ArraySpec, num_steps: int) -> None:
        self._files, self._spec = files, spec
        self.shape = (num_steps, *spec.shape[1:])
        self.dtype = np.dtype(spec.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[np.float32]:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[int | slice, ...]) -> NDArray[np.generic]:
        steps, inner = range(self.shape[0])[key[0]], key[1:]
        if isinstance(steps, int):
            return self._files.block(self._spec, step=steps)[inner]
        blocks = [self._files.block(self._spec, step=step)[inner] for step in steps]
        return np.stack(blocks) if blocks else np.empty(self.shape, self.dtype)[(slice(0), *inner)]


def step_coords(steps: Sequence[StepRecord]) -> dict[str, Any]:
    """Index, noise level and timestep of steps."""
    return {
        STEP: [step.index for step in steps],
        "noise_level": (STEP, [step.noise_level for step in steps]),
        "timestep": (STEP, [step.timestep for step in steps]),
    }


def _head_coords(layout: Layout, steps: tuple[StepRecord, ...]) -> dict[str, Any]:
    sites = layout.manifest.sites
    return {
        **step_coords(steps),
        BRANCH: list(layout.branches),
        **sample_coords(layout, range(len(layout.manifest.labels))),
        **site_coords(layout, range(len(sites))),
        HEAD: np.arange(max((site.heads for site in sites), default=0)),
    }


def site_coords(layout: Layout, layers: Sequence[int]) -> dict[str, Any]:
    """Index and name of layers."""
    names = _texts(layout.manifest.sites[layer].name for layer in layers)
    return {LAYER: np.array(layers, int), "site": (LAYER, names)}


def sample_coords(layout: Layout, samples: Sequence[int]) -> dict[str, Any]:
    """Index and class of samples."""
    names = _texts(layout.manifest.labels[sample].name for sample in samples)
    return {SAMPLE: np.array(samples, int), "label": (SAMPLE, names)}


def _texts(names: Iterable[str]) -> NDArray[np.object_]:
    # Not numpy's own text type: it pads every text to the longest, and cuts NUL characters off.
    return np.array(list(names), dtype=object)
