"""Looking at every byte and number of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ditscope.core.axes import Branch
from ditscope.core.standard_error import described
from ditscope.errors import BadRun
from ditscope.runs.arrays import ArraySpec
from ditscope.runs.attention_rows import Tokens, looking
from ditscope.runs.files import LostFile, RunFiles
from ditscope.runs.layout import Layout
from ditscope.runs.operands import stored
from ditscope.runs.replay import Replayed
from ditscope.runs.verify_proof import Proven, proof_checks

CHECKED_ROWS = 32
BOUND_SLACK = 0.01
"""Share of a statistic's range by which the rounding of a kernel may carry it outside."""

Check = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Verification:
    """What `Run.verify` found. `problems` is empty if every file and invariant is right."""

    problems: tuple[str, ...]
    num_files: int
    num_bytes: int
    num_rows: int  # stored attention rows that were rebuilt and summed
    proof: dict[str, float]  # largest error of each kind of `runs.proof`, computed again
    replayed: Replayed | None = None  # if the run was run again

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def with_replay(self, found: Replayed) -> Verification:
        """The same with what came of running the run again."""
        problems = (*self.problems, *([found.problem] if found.problem else []))
        return replace(self, problems=problems, replayed=found)


def verify(files: RunFiles, layout: Layout, *, ended: bool) -> Verification:
    """Hash and decode every listed file, and check what its numbers must satisfy.

    Latents are finite. Statistics are within their bounds where a branch was evaluated, NaN where
    not. Images decode to one size. For a choice of stored queries the attention sums to one. The
    proof of the run is computed again from what is stored: it must come out as it was recorded, and
    within rounding. Damage is listed, never raised; what a repair named as lost is passed over.
    """
    problems: list[str] = []
    places = _row_places(layout)
    proven = Proven()
    for check in _checks(files, layout, places, proven, ended=ended):
        try:
            problems += check()
        except LostFile:
            continue  # known, and nobody can read it
        except BadRun as error:
            problems.append(str(error))
    return Verification(
        problems=tuple(dict.fromkeys(problems)),  # one damaged chunk may fail several checks
        num_files=len(files.records),
        num_bytes=sum(record.size for record in files.records.values()),
        num_rows=len(places) + proven.num_rows,
        proof=proven.largest,
    )


class _Place(NamedTuple):
    step: int
    branch: Branch
    sample: int
    layer: int
    head: int
    query: int


def _checks(
    files: RunFiles, layout: Layout, places: list[_Place], proven: Proven, *, ended: bool
) -> Iterator[Check]:
    for name in (*layout.group_files, *(spec.metadata_file for spec in layout.arrays)):
        yield partial(_unchanged, files, name)
    for step in layout.manifest.committed_steps:
        yield from _step_checks(files, layout, step)
        yield from proof_checks(files, layout, step, proven)
    for place in places:
        yield partial(_sums_to_one, files, layout, place)
    if ended:
        for name in layout.final.chunk_files():
            yield partial(_finite, files, layout.final, name)
        if layout.masks:
            for name in layout.masks.chunk_files():
                yield partial(_shares, files, layout.masks, name)
        sizes: set[tuple[int, ...]] = set()
        for name in layout.image_files:
            yield partial(_one_size, files, name, sizes)


def _step_checks(files: RunFiles, layout: Layout, step: int) -> Iterator[Check]:
    for name in layout.latents.chunk_files(step=step):
        yield partial(_finite, files, layout.latents, name)
    for statistic, spec in layout.stats.items():
        for name in spec.chunk_files(step=step):
            yield partial(_in_bounds, files, layout, statistic, step, name)
    outputs = (layout.outputs,) if layout.outputs else ()
    for spec in (*layout.tokens.values(), *layout.proof.values(), *outputs):
        for name in spec.chunk_files(step=step):
            yield partial(_decodes, files, spec, name)
    if step in layout.manifest.qk_steps and not layout.manifest.steps[step].proven_queries:
        position = layout.manifest.qk_steps.index(step)
        for spec in layout.qk.values():
            for name in spec.chunk_files(step=position):
                yield partial(_decodes, files, spec, name)


def _unchanged(files: RunFiles, name: str) -> Iterator[str]:
    files.read(name)
    yield from ()


def _decodes(files: RunFiles, spec: ArraySpec, name: str) -> Iterator[str]:
    files.chunk(spec, name)
    yield from ()


def _finite(files: RunFiles, spec: ArraySpec, name: str) -> Iterator[str]:
    files.expect_kept(name)
    if not np.isfinite(files.chunk(spec, name)).all():
        yield f"{files.root / name}: NaN or Inf in {spec.name}"


def _shares(files: RunFiles, spec: ArraySpec, name: str) -> Iterator[str]:
    block = files.chunk(spec, name).astype(np.float32, copy=False)
    if not ((block >= 0) & (block <= 1)).all():
        yield f"{files.root / name}: a share outside 0 to 1"


def _in_bounds(
    files: RunFiles, layout: Layout, statistic: str, step: int, name: str
) -> Iterator[str]:
    files.expect_kept(name)
    block = files.chunk(layout.stats[statistic], name)[0]  # (branch, sample, layer, head)
    known, only = described(statistic), layout.manifest.only
    if known is None:
        return
    for branch, values in zip(layout.branches, block, strict=True):
        evaluated = branch in layout.manifest.steps[step].branches
        evaluated = evaluated and only.has_step(step) and only.has_branch(branch)
        for site in layout.manifest.sites:
            minimum, maximum = known.minimum(site), known.maximum(site)
            measured = evaluated and not math.isnan(maximum)
            kept = np.zeros(values.shape[-1], bool)
            kept[list(only.heads_at(site)) if measured else []] = True
            heads, beyond = values[:, site.index, kept], values[:, site.index, ~kept]
            where = f"{files.root / name}: {statistic} of {branch}, {site.name}, step {step}"
            slack = 0.0 if math.isinf(maximum) else BOUND_SLACK * (maximum - minimum)
            inside = (heads >= minimum - slack) & (heads <= maximum + slack)
            if not (inside | (np.isnan(heads) & known.gaps)).all():
                yield f"{where}: a value outside {minimum:.4g} to {maximum:.4g}"
            if not np.isnan(beyond).all():
                yield f"{where}: a value where nothing was measured"


def _sums_to_one(files: RunFiles, layout: Layout, place: _Place) -> Iterator[str]:
    call = (place.step, place.branch, place.sample, place.layer)
    operands = stored(files, layout, *call)[call]
    try:
        query = Tokens(np.array([place.query]), np.ones(1))
        looking(operands, slice(place.head, place.head + 1), query)
    except BadRun as error:
        yield f"{files.root}: step {place.step}, {place.branch}, layer {place.layer}: {error}"


def _one_size(files: RunFiles, name: str, sizes: set[tuple[int, ...]]) -> Iterator[str]:
    sizes.add(files.image(name).shape)
    if len(sizes) > 1:
        yield f"{files.root / name}: pictures of different sizes"


def _row_places(layout: Layout) -> list[_Place]:
    """Some stored queries, the same ones each time."""
    manifest, random = layout.manifest, np.random.default_rng(0)
    steps = [step for step in manifest.qk_steps if step in manifest.committed_steps]
    places = []
    for _ in range(CHECKED_ROWS if steps else 0):
        step = int(random.choice(steps))
        branches = manifest.steps[step].branches
        site = manifest.sites[random.integers(len(manifest.sites))]
        places.append(
            _Place(
                step=step,
                branch=branches[random.integers(len(branches))],
                sample=int(random.integers(len(manifest.labels))),
                layer=site.index,
                head=int(random.integers(site.heads)),
                query=int(random.integers(site.queries)),
            )
        )
    return places
