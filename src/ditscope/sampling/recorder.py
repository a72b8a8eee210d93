"""Watching a sampling and writing what was seen, one step at a time.

Shapes: S samples, B rows of one batch (branches times samples), L sites, H heads, N tokens,
K head width, C channels, h and w the latent grid.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import platform
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditscope.attention.capture import Capture, Moment, Seen
from ditscope.attention.edits.forward import softmax_scales
from ditscope.attention.edits.kinds import specs_of
from ditscope.attention.metrics.plan import plan_of
from ditscope.core.axes import Branch
from ditscope.core.keep import KeepRecord
from ditscope.core.manifest import (
    GuidanceRecord,
    LabelRecord,
    MetricRecord,
    ModelRecord,
    RunManifest,
    SamplerRecord,
    StepRecord,
)
from ditscope.core.sites import Site
from ditscope.core.standard_error import described
from ditscope.diffusion.guidance import branches_at
from ditscope.diffusion.schedule import Evaluation
from ditscope.runs.background import Background
from ditscope.runs.outputs import NUMBERS, words_of
from ditscope.runs.proof import ERRORS, proven_queries
from ditscope.runs.writer import RunWriter
from ditscope.sampling.job import Job
from ditscope.sampling.kept_call import HostCopy, KeptCall
from ditscope.sampling.machine import machine_of
from ditscope.version import __version__


class Recorder:
    """Records the attention of every batch of every evaluation into a run directory.

    Used as a context manager around the sampling. Statistics are computed beside the attention
    calls and only small arrays are kept, until the step they belong to is committed. What takes
    long, proving and packing and the disk, is done in the background with bounded memory; the
    whole of it is done when the block ends.
    """

    def __init__(self, job: Job, manifest: RunManifest, path: Path, *, overwrite: bool) -> None:
        self._job, self._manifest = job, manifest
        self._writer = RunWriter(path, manifest, overwrite=overwrite)
        self._background = Background()
        self._proof: dict[str, NDArray[np.float32]] = {}  # of this step
        self._stats: list[dict[str, NDArray[np.float32]]] = []  # of this step, one per batch
        self._tokens: list[dict[str, NDArray[np.float32]]] = []  # likewise
        self._outputs: list[tuple[tuple[int, int], HostCopy]] = []  # likewise, branches and samples
        self._before: dict[tuple[int, ...], Moment] = {}  # the last forward of each batch

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._background.__exit__(kind, error, traceback)
        finally:
            self._writer.__exit__(kind, error, traceback)

    @contextlib.contextmanager
    def watching(
        self, batch: tuple[int, ...], evaluation: Evaluation, branches: tuple[Branch, ...]
    ) -> Iterator[None]:
        """Watch the one forward of `batch` that runs in the block."""
        settings = self._job.settings
        shape = (len(branches), len(batch))
        record = self._manifest.steps[evaluation.index]
        whole = record.index in settings.qk_steps
        if not (settings.metrics or whole):  # only the latent of this step is recorded
            yield
            return
        proof = self._proof = self._proof or self._nothing_proven(record)
        site, row = _proven_place(record.index, self._job.measured_sites, math.prod(shape))

        def keep(seen: Seen) -> None:
            if whole or (record.proven_queries and seen.site.index == site):
                call = KeptCall(seen, record, None if whole else row)
                store = partial(self._store, call, record, batch, proof)
                self._background.submit(call.nbytes, store)

        before = self._before.pop(batch, None)
        moment = Moment(branches, before, record.index, settings.seed)
        capture = Capture(
            self._job.sites,
            settings.metrics,
            on_attention=keep,
            detail=settings.detail,
            moment=moment,
            only=settings.only,
        )
        with capture:
            yield
        moment.before = None  # not all steps are kept, but the last
        self._before[batch] = moment
        for kept, found in (
            (self._stats, capture.statistics()),
            (self._tokens, capture.tokens()),
        ):
            kept.append({name: _branches_first(values, shape) for name, values in found.items()})

    def saw(self, output: Tensor, batch: tuple[int, ...], branches: tuple[Branch, ...]) -> None:
        """Note what the network returned (branches * B, C, h, w): a replay is held against it."""
        self._outputs.append(((len(branches), len(batch)), HostCopy(output)))

    def commit(self, x: Tensor, evaluation: Evaluation) -> None:
        """Make the evaluation at state `x` (S, C, h, w) part of the run."""
        stats, tokens = (
            {
                name: np.concatenate([part[name] for part in parts], axis=1)
                for name in (parts[0] if parts else ())
            }
            for parts in (self._stats, self._tokens)
        )
        self._stats.clear()
        self._tokens.clear()
        proof, self._proof = self._proof, {}
        outputs, self._outputs = self._outputs, []
        latent, index = HostCopy(x), evaluation.index

        def write() -> None:
            words = np.concatenate([_words(*each) for each in outputs], axis=1)
            self._writer.write_step(index, latent.numpy(), stats, tokens, proof, words)
            self._writer.commit_step(index)

        arrays = (*stats.values(), *tokens.values(), *proof.values())
        waiting = [latent, *arrays, *(copy for _, copy in outputs)]
        self._background.submit(sum(each.nbytes for each in waiting), write)

    def finish(
        self, final: Tensor, images: NDArray[np.uint8], masks: NDArray[np.float32] | None = None
    ) -> None:
        """Write the end of the sampling and seal the run; `masks` (S, height, width) of a probe."""
        self._background.wait()
        self._writer.write_final(final.numpy(), masks)
        for index, pixels in enumerate(images):
            self._writer.write_image(index, pixels)
        self._writer.complete()

    def _nothing_proven(self, record: StepRecord) -> dict[str, NDArray[np.float32]]:
        """Room for the proof of a step, by name (branch, sample, layer, head)."""
        sites, samples = self._manifest.sites, len(self._manifest.labels)
        shape = (len(record.branches), samples, len(sites), max(site.heads for site in sites))
        return {name: np.full(shape, np.nan, np.float32) for name in ERRORS}

    def _store(
        self,
        call: KeptCall,
        record: StepRecord,
        batch: tuple[int, ...],
        proof: dict[str, NDArray[np.float32]],
    ) -> None:
        """Prove a call, and write it if it is kept. Runs in the background."""
        shape = (len(record.branches), len(batch))
        if call.row is None:
            branches, samples = slice(None), slice(batch[0], batch[0] + len(batch))
            q, k, lse, witness = call.parts(*shape)
            self._writer.write_qk(
                record.index, call.layer, q, k, lse, first_sample=batch[0], witness=witness
            )
        else:
            branch, sample = divmod(call.row, len(batch))
            branches, samples = slice(branch, branch + 1), slice(batch[sample], batch[sample] + 1)
        for name, found in call.errors().items():
            place = proof[name][branches, samples, call.layer, : found.shape[-1]]
            place[:] = found.reshape(place.shape)


def _proven_place(step: int, sites: Sequence[Site], num_rows: int) -> tuple[int, int]:
    """Which site, and which row of every batch, is proven at a step that keeps no Q and K.

    One at a time, in turn: a step costs nearly nothing, and a run of some length covers the model.
    """
    return sites[step % len(sites)].index, step // len(sites) % num_rows


def manifest_of(job: Job) -> RunManifest:
    """What will be recorded, and everything needed to do it again."""
    pipe, settings, sites = job.pipe, job.settings, job.sites
    interval = settings.cfg_interval
    return RunManifest(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={
            "ditscope": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        model=ModelRecord(
            name=pipe.name,
            source=pipe.source,
            weights=pipe.weights,
            weights_sha256=pipe.weights_sha256,
            config=pipe.model.config.model_dump(mode="json"),
            process=pipe.process.model_dump(mode="json"),
            codec=pipe.codec.config.model_dump(mode="json"),
            dtype=pipe.dtype,
            device=str(pipe.device),
            parameters=sum(parameter.numel() for parameter in pipe.model.parameters()),
        ),
        labels=tuple(_label(job, y) for y in job.classes),
        seed=settings.seed,
        sample_seeds=job.sample_seeds,
        batches=job.batches,
        sampler=SamplerRecord(
            name=job.plan.sampler, steps=job.plan.steps, options=job.plan.options
        ),
        guidance=GuidanceRecord(
            scale=job.cfg_scale,
            channels=settings.cfg_channels,
            interval=interval,
            null_label=pipe.model.config.null_label,
        ),
        steps=tuple(_step_record(job, each) for each in job.plan.evaluations),
        latent_shape=pipe.latent_shape,
        sites=sites,
        statistics=job.statistics,
        token_statistics=plan_of(settings.metrics, settings.detail).token_names,
        metrics={name: _described(name) for name in job.statistics},
        only=KeepRecord.model_validate(settings.only.model_dump()),  # as it is read back
        qk_steps=settings.qk_steps,
        qk_dtype=pipe.dtype if settings.qk_steps else None,
        scales=tuple(site.head_width**-0.5 for site in sites),
        output_numbers=NUMBERS,
        machine=machine_of(pipe.device),
        edits=specs_of(settings.edits),
    )


def _label(job: Job, y: int) -> LabelRecord:
    known = y < len(job.pipe.labels)  # a probe may tell the network nothing
    return LabelRecord(index=y, name=job.pipe.labels[y] if known else "no class")


def _step_record(job: Job, each: Evaluation) -> StepRecord:
    settings, keeps_qk = job.settings, each.index in job.settings.qk_steps
    return StepRecord(
        index=each.index,
        solver_step=each.solver_step,
        evaluation=each.evaluation,
        timestep=each.timestep,
        noise_level=each.noise_level,
        branches=branches_at(each, job.cfg_scale, settings.cfg_interval),
        scales=softmax_scales(settings.edits, job.sites, each.index)
        if settings.edits and keeps_qk
        else None,
        proven_queries=proven_queries(settings.seed, each.index, job.sites)
        if keeps_qk or job.measures(each)
        else (),
    )


def _words(shape: tuple[int, int], output: HostCopy) -> NDArray[np.uint16]:
    """What is kept of the outputs of one batch: (branch, sample, word)."""
    rows = [words_of(row, NUMBERS) for row in output.numpy()]
    return np.stack(rows).reshape(*shape, -1)


def _described(name: str) -> MetricRecord:
    about = described(name)
    assert about is not None
    return MetricRecord(
        long_name=about.long_name, unit=about.unit, formula=about.formula, source=about.source
    )


def _branches_first(values: Tensor, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(B, L, H, ...) of one batch -> (branch, sample, layer, head, ...)."""
    return values.numpy().reshape(*shape, *values.shape[1:])
