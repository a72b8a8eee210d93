"""Watching a sampling and writing what was seen, one step at a time.

Shapes: S samples, B rows of one batch (branches times samples), L sites, H heads, N tokens,
K head width, C channels, h and w the latent grid.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditscope.attention.capture import Capture, Moment
from ditscope.attention.edits.forward import softmax_scales
from ditscope.attention.edits.kinds import specs_of
from ditscope.attention.metrics.plan import plan_of
from ditscope.core.axes import Branch
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
from ditscope.core.statistics import STATISTICS
from ditscope.diffusion.guidance import branches_at
from ditscope.diffusion.schedule import Evaluation
from ditscope.runs.writer import RunWriter
from ditscope.sampling.job import Job
from ditscope.version import __version__


class Recorder:
    """Records the attention of every batch of every evaluation into a run directory.

    Used as a context manager around the sampling. Statistics are computed beside the attention
    calls and only small arrays are kept, until the step they belong to is committed.
    """

    def __init__(self, job: Job, manifest: RunManifest, path: Path, *, overwrite: bool) -> None:
        self._job = job
        self._writer = RunWriter(path, manifest, overwrite=overwrite)
        self._stats: list[dict[str, NDArray[np.float32]]] = []  # of this step, one per batch
        self._tokens: list[dict[str, NDArray[np.float32]]] = []  # likewise
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
        self._writer.__exit__(kind, error, traceback)

    @contextlib.contextmanager
    def watching(
        self, batch: tuple[int, ...], evaluation: Evaluation, branches: tuple[Branch, ...]
    ) -> Iterator[None]:
        """Watch the one forward of `batch` that runs in the block."""
        settings = self._job.settings
        shape = (len(branches), len(batch))
        keeps_qk = evaluation.index in settings.qk_steps

        def keep(site: Site, q: Tensor, k: Tensor, lse: Tensor) -> None:
            parts = (_stored(part).reshape(*shape, *part.shape[1:]) for part in (q, k, lse))
            self._writer.write_qk(evaluation.index, site.index, *parts, first_sample=batch[0])

        if not settings.metrics and not keeps_qk:
            yield
            return
        moment = Moment(branches, self._before.pop(batch, None))
        capture = Capture(
            self._job.sites,
            settings.metrics,
            keep if keeps_qk else None,
            detail=settings.detail,
            moment=moment,
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
        self._writer.write_step(evaluation.index, x.cpu().numpy(), stats, tokens)
        self._writer.commit_step(evaluation.index)

    def finish(self, final: Tensor, images: NDArray[np.uint8]) -> None:
        """Write the end of the sampling and seal the run."""
        self._writer.write_final(final.numpy())
        for index, pixels in enumerate(images):
            self._writer.write_image(index, pixels)
        self._writer.complete()


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
        labels=tuple(LabelRecord(index=y, name=pipe.labels[y]) for y in job.classes),
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
        steps=tuple(
            StepRecord(
                index=each.index,
                solver_step=each.solver_step,
                evaluation=each.evaluation,
                timestep=each.timestep,
                noise_level=each.noise_level,
                branches=branches_at(each, job.cfg_scale, interval),
                scales=softmax_scales(settings.edits, sites, each.index)
                if settings.edits and each.index in settings.qk_steps
                else None,
            )
            for each in job.plan.evaluations
        ),
        latent_shape=pipe.latent_shape,
        sites=sites,
        statistics=settings.metrics,
        token_statistics=plan_of(settings.metrics, settings.detail).token_names,
        metrics={name: _described(name) for name in settings.metrics},
        qk_steps=settings.qk_steps,
        qk_dtype=pipe.dtype if settings.qk_steps else None,
        scales=tuple(site.head_width**-0.5 for site in sites),
        edits=specs_of(settings.edits),
    )


def _described(name: str) -> MetricRecord:
    about = STATISTICS[name]
    return MetricRecord(
        long_name=about.long_name, unit=about.unit, formula=about.formula, source=about.source
    )


def _stored(tensor: Tensor) -> NDArray[Any]:
    """The numbers as they are kept: bfloat16 as the bits of uint16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def _branches_first(values: Tensor, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(B, L, H, ...) of one batch -> (branch, sample, layer, head, ...)."""
    return values.numpy().reshape(*shape, *values.shape[1:])
