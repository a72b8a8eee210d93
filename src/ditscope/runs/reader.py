"""Opening a run: checked before anything is decoded, read-only, without torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ditscope.core import strict_json
from ditscope.core.axes import BRANCH, LAYER, QUERY, SAMPLE, STEP, Branch
from ditscope.core.manifest import SCHEMA_VERSION, RunManifest, StepRecord
from ditscope.errors import BadRequest, BadRun, foreign, listed
from ditscope.runs import invariants
from ditscope.runs.arrays import check_array, check_group
from ditscope.runs.attention_rows import Operands, maps
from ditscope.runs.choices import index_of, layer_of
from ditscope.runs.files import RunFiles, read_regular
from ditscope.runs.layout import (
    COMPLETE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_SEAL_BYTES,
    Layout,
    layout_of,
    seals,
)
from ditscope.runs.operands import OperandsCache, Place, is_stored, stored
from ditscope.runs.replay import replay, replay_run
from ditscope.runs.replay_cache import ReplayCache, limit_from_environment
from ditscope.runs.target import interrupted_swap, parts_folder

if TYPE_CHECKING:
    import xarray

    from ditscope.runs.verify import Verification


MOST_CHANGES = 10
"""How often a run is looked at again that was replaced or repaired while it was being opened."""

Head = int | Literal["mean"]
"""One head, or the mean over those of a layer: what plots and analyses of one map ask for."""


class Run:
    """A recorded sampling. It is not changed; bytes are checked whenever they are decoded.

    `manifest` says what was run; `complete` is false for a run that was interrupted or is still
    being written, of which only the committed steps are shown. `layout` and `files` are the arrays
    and files underneath, for tools, and `replays` is what replays have left in its cache.
    """

    def __init__(self, path: Path, layout: Layout, *, complete: bool, cache_bytes: int = 0) -> None:
        self.path = path
        self.manifest = layout.manifest
        self.complete = complete
        self.layout = layout
        self.files = RunFiles(path, layout.manifest.files, layout.manifest.lost)
        self.replays = ReplayCache(path, layout, cache_bytes)
        self._operands = OperandsCache(self._load)

    def __repr__(self) -> str:
        state = "" if self.complete else f", partial: {len(self.steps)} steps are whole"
        state += f", {len(self.files.lost)} files were lost" if self.files.lost else ""
        labels = listed((label.name for label in self.manifest.labels), 3)
        return f"<Run {foreign(self.path)}: {labels}; {len(self.manifest.steps)} steps{state}>"

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        """The steps that are whole on disk, in the order in which they were sampled."""
        return self.manifest.steps[: len(self.manifest.committed_steps)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of every file: tells any two runs apart."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    @property
    def has_images(self) -> bool:
        """Whether the sampling came to its end and no picture was lost."""
        return ended(self.layout) and not self.files.lost.intersection(self.layout.image_files)

    @cached_property
    def stats(self) -> xarray.Dataset:
        """Statistics of every head: (step, branch, sample, layer, head) float32.

        NaN where a branch was not evaluated, a layer has fewer heads, or a file was lost before a
        repair (`manifest.lost` names those). Coordinates: `noise_level`
        and `timestep` of a step, `site` of a layer, `label` of a sample. Raises BadRun.
        """
        from ditscope.runs import labelled

        return labelled.of_heads(self.files, self.layout, self.layout.stats, self.steps)

    @cached_property
    def proof(self) -> xarray.Dataset:
        """How far attention rebuilt from what was kept was from the kernel's, when it was recorded.

        `row_sum` and `output` (step, branch, sample, layer, head) float32, see `runs.proof`; NaN
        where nothing was rebuilt. `verify` computes them again. Raises BadRun.
        """
        from ditscope.runs import labelled

        return labelled.of_heads(self.files, self.layout, self.layout.proof, self.steps)

    @cached_property
    def tokens(self) -> xarray.Dataset:
        """Metrics of single tokens: (step, branch, sample, layer, head, token), read step by step.

        Holds what was sampled with `detail="tokens"`; axes and coordinates as of `stats`. A token
        is a query, or of metrics of what is received a key. NaN where there is no number.
        """
        from ditscope.runs import labelled

        return labelled.tokens(self.files, self.layout, self.steps)

    @cached_property
    def latents(self) -> xarray.DataArray:
        """Input of the network: (step, sample, channel, y, x) float32, read step by step.

        NaN where a file was lost before a repair.
        """
        from ditscope.runs import labelled

        return labelled.latents(self.files, self.layout, self.steps)

    @cached_property
    def final(self) -> xarray.DataArray:
        """The latents after the last step: (sample, channel, y, x) float32. Raises BadRun."""
        from ditscope.runs import labelled

        if not ended(self.layout):
            raise BadRun("a partial run has no final latents", file=self.path)
        return labelled.final_latents(self.files, self.layout)

    @cached_property
    def images(self) -> xarray.DataArray:
        """The pictures: (sample, y, x, channel) uint8. Raises BadRun."""
        from ditscope.runs import labelled

        if not ended(self.layout):
            raise BadRun("a partial run has no images", file=self.path)
        pictures = [self.files.image(name) for name in self.layout.image_files]
        if len({picture.shape for picture in pictures}) > 1:
            raise BadRun("pictures of different sizes", file=self.path)
        return labelled.images(np.stack(pictures), self.layout)

    @cached_property
    def masks(self) -> xarray.DataArray:
        """Objects in the pictures of a probe: (sample, y, x), 0 to 1. Raises BadRun, BadRequest."""
        from ditscope.runs import labelled

        if self.layout.masks is None:
            fix = "ditscope probe --scenes 8 looks at scenes whose objects are known"
            raise BadRequest("their objects are not known", file=self.path, fix=fix)
        if not ended(self.layout):
            raise BadRun("a partial run has no masks", file=self.path)
        return labelled.masks(self.files, self.layout, self.layout.masks)

    def attention(
        self,
        layer: Any,
        head: Any,
        step: Any,
        query: Any = None,
        sample: Any = 0,
        branch: Any = "cond",
        *,
        received: Any = None,
    ) -> xarray.DataArray:
        """Where tokens look, (..., y, x): probabilities that sum to 1; or who looks at them.

        Exact: from stored Q, K and log-sum-exp where they were kept, else by running that one step
        again (`attrs["source"]`: "stored" or "replayed"). `attrs["verified"]` says whether a replay
        gave the network's recorded output "bit for bit", or on another machine how far it was from
        it (`replay_difference`). It is kept in the cache of the run and read from there.

        What is asked for as one index is no axis of the result but an attribute. A mean over layers
        or heads holds one call of attention at a time.

        Args:
            layer: index or name of a site; several; "all"; or "mean" over all.
            head: index; several; "all"; or "mean".
            step: index; several; "all" or "mean" of those that evaluated the branch.
            query: whose attention: (y, x) of a patch, the index of a token, or the mean over a box
                (top, left, bottom, right) of patches, over a mask of the grid or of the picture,
                or over all tokens ("mean").
            sample: index; several; "all"; or "mean".
            branch: half of classifier-free guidance; several; "all"; or "mean".
            received: in place of `query`, the reverse: the share of its attention that each token
                gives to that patch, token, box or mask. Even attention gives each patch 1 / keys.

        Returns:
            float32 with the axes that were asked for several of, in the order step, branch, sample,
            layer, head; then the patches (y, x), or the token where a layer has no known patches.
            Where it has tokens beside them their share is `outside_grid`.

        Raises:
            BadRequest: an argument is out of range; the message names the range.
            BadRun: what is stored is damaged, or a replay is not the recorded step.
            ResourceError: a replay is needed, and torch is not installed.
        """
        from ditscope.runs.attention import Asked, attention

        asked = Asked(layer, head, step, sample, branch, query, received)
        return attention(self.layout, len(self.steps), self._operands.get, asked)

    def maps(
        self,
        layer: int | str,
        step: int,
        queries: Sequence[int] | NDArray[np.intp],
        sample: int = 0,
        branch: Branch = "cond",
    ) -> NDArray[np.float32]:
        """Where several tokens look, in all heads at once: (head, query, key), rows sum to 1.

        As `attention`, for work on many rows; `queries` are indices of tokens. Errors as there.
        """
        site = self.manifest.sites[
            index_of(LAYER, layer_of(self.manifest.sites, layer), len(self.manifest.sites))
        ]
        step = index_of(STEP, step, len(self.steps))
        evaluated = self.manifest.steps[step].branches
        if branch not in evaluated:
            raise BadRequest(
                f"{foreign(branch)} was not evaluated at step {step}",
                field=BRANCH,
                expected=listed(evaluated),
            )
        sample = index_of(SAMPLE, sample, len(self.manifest.labels))
        tokens = np.asarray(queries)
        if tokens.dtype.kind not in "iu" or ((tokens < 0) | (tokens >= site.queries)).any():
            tokens = np.array([index_of(QUERY, token, site.queries) for token in queries], np.intp)
        return maps(self._operands.get(step, branch, sample, site.index), tokens)

    def verify(self, *, replay: bool = False) -> Verification:
        """Hash every file and check every number; what is wrong is listed, not raised.

        With `replay` every step is run again through the network and the sampler too, which needs
        torch and the weights, and takes as long as the sampling: each next latent is compared with
        the stored one. Bits that differ by rounding are reported, and are no problem.
        """
        from ditscope.runs.verify import verify

        found = verify(self.files, self.layout, ended=ended(self.layout))
        return found.with_replay(replay_run(self)) if replay else found

    def _load(self, step: int, branch: Branch, sample: int, layer: int) -> Mapping[Place, Operands]:
        if is_stored(self.files, self.layout, step, sample, layer):
            return stored(self.files, self.layout, step, branch, sample, layer)
        if self.files.lost.intersection(self.layout.latents.chunk_files(step=step)):
            raise BadRun(
                f"step {step} cannot be run again: its latent was lost before the run was repaired",
                file=self.path,
            )
        return replay(self, self.replays, step=step, sample=sample, layer=layer)


def open_run(
    path: str | os.PathLike[str], allow_partial: bool = False, *, cache_bytes: int | None = None
) -> Run:
    """The run in the directory `path`, after its manifest, files and array shapes are checked.

    Args:
        path: the run directory.
        allow_partial: open a run that was interrupted, or is still being written, too; it shows
            the steps that are whole.
        cache_bytes: what replayed attention may take in its folder `cache`; 0: nothing is cached.
            None: as `DITSCOPE_REPLAY_CACHE` says in MiB, else 1 GiB.

    Raises:
        BadRequest: the cache is to have a size that is none.
        BadRun: no run, a partial one, made by a newer version, damaged, or not what a run may be.
    """
    limit = limit_from_environment() if cache_bytes is None else cache_bytes
    if limit < 0:
        raise BadRequest(f"found {limit}", field="cache_bytes", expected="bytes, or 0")
    for _ in range(MOST_CHANGES):
        before = _vouchers(Path(path))
        try:
            return _opened(Path(path), limit, allow_partial=allow_partial)
        except BadRun:
            if _vouchers(Path(path)) == before:
                raise
    return _opened(Path(path), limit, allow_partial=allow_partial)


def _vouchers(folder: Path) -> list[tuple[int, ...] | None]:
    """What tells whether a writer or a repair has changed the run meanwhile."""
    found: list[tuple[int, ...] | None] = []
    for path in (folder, folder / MANIFEST, folder / COMPLETE):
        try:
            about = path.stat()
        except OSError:
            found.append(None)
        else:
            changed = 0 if path == folder else about.st_mtime_ns
            found.append((about.st_dev, about.st_ino, changed))
    return found


def _opened(folder: Path, cache_bytes: int, *, allow_partial: bool) -> Run:
    folder = interrupted_swap(folder) or folder
    if not folder.is_dir():
        problem = "is not a folder" if os.path.lexists(folder) else "does not exist"
        parts = parts_folder(folder)
        begun = (
            f"some of its samples are drawn, in {foreign(parts)}; the same command draws the rest"
        )
        fix = begun if parts.is_dir() else None
        raise BadRun(problem, file=folder, expected="a run directory", fix=fix)
    # The seal first: a writer that completes the run meanwhile changes run.json before sealing it.
    seal = folder / COMPLETE
    complete = os.path.lexists(seal)
    sealed = read_regular(seal, MAX_SEAL_BYTES) if complete else b""
    data = read_regular(folder / MANIFEST, MAX_MANIFEST_BYTES)
    if complete and not seals(sealed, data):
        raise BadRun(f"does not hold the digest of {MANIFEST}: one of them was changed", file=seal)
    layout = layout_of(parsed_manifest(data, folder / MANIFEST))
    committed, total = len(layout.manifest.committed_steps), len(layout.manifest.steps)
    repaired = layout.manifest.repaired
    if not committed or (complete and committed < total and not repaired):
        raise BadRun(f"{committed} of {total} steps are whole", file=folder)
    if not complete and not allow_partial:
        raise BadRun(
            f"a partial run: {committed} of {total} steps are whole, and it is not sealed",
            file=folder,
            fix="open_run(..., allow_partial=True) shows the whole steps; ditscope info --repair "
            "seals it with them",
        )
    whole = not repaired or (committed == total and ended(layout))
    run = Run(folder, layout, complete=complete and whole, cache_bytes=cache_bytes)
    _check_files(run)
    return run


def ended(layout: Layout) -> bool:
    """Whether the sampling came to its end, so that final latents and images were written."""
    end = layout.end_files[0]
    return end in layout.manifest.files or end in layout.manifest.lost


def parsed_manifest(data: bytes, file: Path) -> RunManifest:
    """The manifest in `data`, the bytes of `file`. Raises BadRun."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadRun(f"larger than {MAX_MANIFEST_BYTES:,} bytes", file=file)
    tree = strict_json.parse(data, file=file, error=BadRun)
    version = tree.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        versions = tree.get("versions")
        maker = versions.get("ditscope", "?") if isinstance(versions, dict) else "?"
        raise BadRun(
            f"{foreign(version)}, made by ditscope {foreign(maker)}",
            file=file,
            field="schema_version",
            expected=f"{SCHEMA_VERSION}, which this ditscope reads",
            fix="update ditscope" if version > SCHEMA_VERSION else None,
        )
    manifest = strict_json.validated(RunManifest, tree, file=file, error=BadRun)
    invariants.check(manifest, str(file))
    return manifest


def check_listed(layout: Layout, file: Path, *, at_end: bool) -> None:
    """Raise BadRun unless the manifest in `file` lists what the run holds, or says it is lost."""
    manifest = layout.manifest
    expected = layout.files(len(manifest.committed_steps), ended=at_end)
    found = manifest.files.keys() | manifest.lost.keys()
    missing = [name for name in expected if name not in found]
    if strange := found - set(expected):
        raise BadRun(f"lists {listed(strange)}", file=file, field="files")
    if missing:
        raise BadRun(f"does not list {listed(missing)}", file=file, field="files")
    never = manifest.lost.keys() & {*manifest.files, *layout.metadata_files}
    if never or (manifest.lost and not manifest.repaired):
        raise BadRun("names what cannot be lost", file=file, field="lost")


def _check_files(run: Run) -> None:
    """Every file that the run consists of is listed, there, and of its size; arrays are ours."""
    check_listed(run.layout, run.path / MANIFEST, at_end=run.complete or ended(run.layout))
    for error in run.files.missing():
        raise error
    for name in run.layout.group_files:
        file = run.path / name
        check_group(strict_json.parse(run.files.read(name), file=file, error=BadRun), str(file))
    for spec in run.layout.arrays:
        file = run.path / spec.metadata_file
        found = strict_json.parse(run.files.read(spec.metadata_file), file=file, error=BadRun)
        check_array(found, spec, str(file))
