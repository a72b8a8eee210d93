"""What must hold between the fields of a manifest: checked before a run is written or read."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ditscope.core.axes import BRANCHES
from ditscope.core.manifest import RunManifest
from ditscope.core.statistics import METRIC_NAME
from ditscope.errors import BadRun, foreign


def check(manifest: RunManifest, file: str) -> None:
    """Raise BadRun for the first broken invariant of `manifest`, naming the field in `file`."""
    for field, problem in broken(manifest):
        raise BadRun(problem, file=file, field=field)


def broken(manifest: RunManifest) -> Iterator[tuple[str, str]]:
    """Field and problem of every broken invariant."""
    yield from _samples(manifest)
    yield from _steps(manifest)
    yield from _sites(manifest)
    if manifest.qk_steps or manifest.qk_dtype:
        yield from _kept(manifest)


def _samples(manifest: RunManifest) -> Iterator[tuple[str, str]]:
    num_samples = len(manifest.labels)
    if not num_samples:
        yield "labels", "no sample"
    if len(manifest.sample_seeds) != num_samples:
        yield "sample_seeds", f"{len(manifest.sample_seeds)} seeds for {num_samples} samples"
    if sorted(sample for batch in manifest.batches for sample in batch) != [*range(num_samples)]:
        yield "batches", f"do not hold each of the {num_samples} samples once"
    if min(manifest.latent_shape) < 1:
        yield "latent_shape", f"a size below 1 in {manifest.latent_shape}"
    if manifest.mask_shape is not None and min(manifest.mask_shape) < 1:
        yield "mask_shape", f"a size below 1 in {manifest.mask_shape}"


def _steps(manifest: RunManifest) -> Iterator[tuple[str, str]]:
    if not manifest.steps:
        yield "steps", "no step"
    for position, step in enumerate(manifest.steps):
        if step.index != position:
            yield f"steps.{position}.index", f"{step.index} at position {position}"
        if step.branches not in {BRANCHES, *((branch,) for branch in BRANCHES)}:
            yield f"steps.{position}.branches", "not cond, uncond or both in this order"
        queries = min((site.queries for site in manifest.sites), default=0)
        if list(step.proven_queries) != sorted({*step.proven_queries} & {*range(queries)}):
            yield f"steps.{position}.proven_queries", f"not ascending queries below {queries}"
        if step.scales is not None:
            yield from _scales(f"steps.{position}.scales", step.scales, len(manifest.sites))
    done = len(manifest.committed_steps)
    if manifest.committed_steps != tuple(range(done)) or done > len(manifest.steps):
        yield "committed_steps", f"not the first {done} of {len(manifest.steps)} steps"


def _sites(manifest: RunManifest) -> Iterator[tuple[str, str]]:
    for position, site in enumerate(manifest.sites):
        if site.index != position:
            yield f"sites.{position}.index", f"{site.index} at position {position}"
        tokens = min(site.queries, site.keys)
        if site.grid and site.grid.start + site.grid.count > tokens:
            yield f"sites.{position}.grid", f"does not fit in {tokens} tokens"
        if site.grid and site.grid.frames > 1:
            yield f"sites.{position}.grid", "has frames; a run holds pictures"
        if any(segment.start + segment.count > site.keys for segment in site.segments):
            yield f"sites.{position}.segments", f"do not fit in {site.keys} keys"
    for name in (*manifest.statistics, *manifest.token_statistics, *manifest.metrics):
        if not METRIC_NAME.fullmatch(name):
            yield "statistics", f"{foreign(repr(name))} is not of small letters, digits and _"
    for field, names in (
        ("statistics", manifest.statistics),
        ("token_statistics", manifest.token_statistics),
    ):
        if len(set(names)) != len(names):
            yield field, "a name appears twice"
    if strange := set(manifest.token_statistics) - set(manifest.statistics):
        yield "token_statistics", f"{foreign(min(strange))} is not in statistics"
    if manifest.statistics and not manifest.sites:
        yield "sites", "statistics without a site"


def _kept(manifest: RunManifest) -> Iterator[tuple[str, str]]:
    kept = manifest.qk_steps
    if list(kept) != sorted({step for step in kept if 0 <= step < len(manifest.steps)}):
        yield "qk_steps", f"not ascending steps from 0 to {len(manifest.steps) - 1}"
    if not kept or manifest.qk_dtype is None:
        yield "qk_dtype", "qk_steps and qk_dtype are given together or not at all"
    if not manifest.sites:
        yield "sites", "Q and K without a site"
    proven = {len(step.proven_queries) for step in manifest.steps if step.index in kept}
    if len(proven) > 1:
        yield "steps", "some of qk_steps have more proven_queries than others"
    shapes = {(site.heads, site.queries, site.keys, site.head_width) for site in manifest.sites}
    if len(shapes) > 1:
        yield "sites", f"Q and K can only be kept where all sites have one shape, not {len(shapes)}"
    yield from _scales("scales", manifest.scales, len(manifest.sites))


def _scales(field: str, scales: tuple[float, ...], count: int) -> Iterator[tuple[str, str]]:
    if len(scales) != count:
        yield field, f"{len(scales)} scales for {count} sites"
    if not all(math.isfinite(scale) and scale > 0 for scale in scales):
        yield field, "not all positive"
