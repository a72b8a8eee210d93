"""Several runs, each of some samples of one sampling, become the run of all of them.

What a batch wrote alone (Q, K, pictures) is linked and not copied; latents and statistics, small
arrays that all samples share, are read and written again. The result is, file by file, what one
process would have written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditscope.core.manifest import RunManifest, StepRecord
from ditscope.runs.arrays import ArraySpec
from ditscope.runs.layout import layout_of
from ditscope.runs.proof import Witness
from ditscope.runs.reader import Run
from ditscope.runs.writer import RunWriter

_COMPARED = [
    field
    for field in RunManifest.model_fields
    if field not in {"created", "model", "committed_steps", "files", "repaired", "lost", "machine"}
]
"""Fields in which a part must be what the whole says; the model's are compared one by one."""


def part_of(manifest: RunManifest, batch: tuple[int, ...]) -> RunManifest:
    """The manifest of one of `manifest.batches`, drawn as a run of its own."""
    return manifest.model_copy(
        update={
            "labels": tuple(manifest.labels[sample] for sample in batch),
            "sample_seeds": tuple(manifest.sample_seeds[sample] for sample in batch),
            "batches": (tuple(range(len(batch))),),
            "committed_steps": (),
            "files": {},
        }
    )


def first_difference(found: RunManifest, expected: RunManifest) -> str | None:
    """The field in which two parts are not of one sampling; None if they are.

    Devices of one kind count as one: `cuda:0` and `cuda:1`.
    """
    for field in _COMPARED:
        if getattr(found, field) != getattr(expected, field):
            return field
    for field in type(expected.model).model_fields:
        values = [getattr(each.model, field) for each in (found, expected)]
        if field == "device":
            values = [value.split(":")[0] for value in values]
        if values[0] != values[1]:
            return f"model.{field}"
    return None


def merge(parts: Sequence[Run], manifest: RunManifest, writer: RunWriter) -> None:
    """Write and seal, with `writer`, the run of `manifest` from one complete run per batch.

    Raises:
        BadRun: a part is damaged.
        ResourceError: it cannot be written.
    """
    for step in manifest.steps:
        latents = [_block(run, run.layout.latents, step=step.index) for run in parts]
        stats, tokens, proof = (
            {
                name: np.concatenate([_of_step(*each, step) for each in specs], 1)
                for name, specs in by_name.items()
            }
            for by_name in _metrics(parts)
        )
        outputs = [_of_step(run, run.layout.outputs, step) for run in parts if run.layout.outputs]
        words = np.concatenate(outputs, axis=1) if outputs else None
        writer.write_step(step.index, np.concatenate(latents), stats, tokens, proof, words)
        if step.index in manifest.qk_steps:
            for layer in range(len(manifest.sites)):
                _qk(parts, manifest, writer, step.index, layer)
        writer.commit_step(step.index)
    writer.write_final(np.concatenate([_block(run, run.layout.final) for run in parts]))
    names = layout_of(manifest).image_files
    for batch, run in zip(manifest.batches, parts, strict=True):
        for sample, own in zip(batch, run.layout.image_files, strict=True):
            writer.adopt(names[sample], run.path / own, run.manifest.files[own])
    writer.complete()


def _metrics(parts: Sequence[Run]) -> Iterator[dict[str, list[tuple[Run, ArraySpec]]]]:
    """What is written with a step beside its latent, by name: the array of every part."""
    for group in ("stats", "tokens", "proof"):
        yield {
            name: [(run, getattr(run.layout, group)[name]) for run in parts]
            for name in getattr(parts[0].layout, group)
        }


def _block(run: Run, spec: ArraySpec, **place: int) -> NDArray[Any]:
    """The values at `place`, all samples of `run`, in the type of the array."""
    return run.files.block(spec, None, **place)


def _of_step(run: Run, spec: ArraySpec, step: StepRecord) -> NDArray[Any]:
    """(branch, sample, layer, head, ...) of the branches that the step evaluates."""
    return _block(run, spec, step=step.index)[_evaluated(run, step.index)]


def _evaluated(run: Run, step: int) -> list[int]:
    return [run.layout.branches.index(branch) for branch in run.manifest.steps[step].branches]


def _qk(
    parts: Sequence[Run], manifest: RunManifest, writer: RunWriter, step: int, layer: int
) -> None:
    """Q, K and log-sum-exp of one layer of a step."""
    place = {"step": manifest.qk_steps.index(step), "layer": layer}
    whole = layout_of(manifest).qk
    for batch, run in zip(manifest.batches, parts, strict=True):
        own = run.layout.qk
        if all(own[name].samples_per_chunk == whole[name].samples_per_chunk for name in whole):
            for name, spec in whole.items():
                _adopt_chunks(run, own[name], spec, batch, place, writer)
        else:  # the last batch is smaller than the others, and so is what its chunks hold
            q, k, lse, *said = (
                _block(run, spec, **place)[_evaluated(run, step)] for spec in own.values()
            )
            witness = Witness(*said) if said else None
            writer.write_qk(step, layer, q, k, lse, first_sample=batch[0], witness=witness)


def _adopt_chunks(
    run: Run,
    own: ArraySpec,
    whole: ArraySpec,
    batch: tuple[int, ...],
    place: dict[str, int],
    writer: RunWriter,
) -> None:
    start = batch[0] // whole.samples_per_chunk
    names = list(whole.chunk_files(**place))[start:]
    for name, own_name in zip(names, own.chunk_files(**place), strict=False):
        writer.adopt(name, run.path / own_name, run.manifest.files[own_name])
