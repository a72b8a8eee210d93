"""Writing a run while it is sampled: after a crash a step is whole on disk, or not there.

    with RunWriter("runs/dog", manifest) as writer:
        for step in ...:
            writer.write_step(step, latent, stats)
            writer.commit_step(step)
        writer.write_final(latents)
        writer.write_image(0, pixels)
        writer.complete()

A commit puts the step's files on the disk, then replaces `run.json` by one that lists them with
size and digest. Readers see what `run.json` lists and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ditscope.core.atomic import check_space, flush, new_file
from ditscope.core.axes import SAMPLE
from ditscope.core.manifest import FileRecord, RunManifest
from ditscope.errors import BadRequest, NumericalError, ResourceError, listed
from ditscope.runs import invariants
from ditscope.runs.arrays import ArraySpec, document_bytes, group_document
from ditscope.runs.chunks import encode
from ditscope.runs.layout import COMPLETE, MANIFEST, layout_of, seal_of
from ditscope.runs.proof import Witness
from ditscope.runs.target import Target

_NEXT_MANIFEST = f"{MANIFEST}.tmp"
_FLUSHERS = 8
"""Files flushed at a time: a journal commits them together, so eight cost about as much as one."""


class RunWriter:
    """The one writer of a run directory, used as a context manager.

    `manifest` says what will be written; its `committed_steps` and `files` are filled in here. If
    the block ends without `complete()`, by an error or not, the committed steps stay readable as a
    partial run; if there are none, or an older run would have been replaced, nothing of the new
    one stays. With `overwrite` an older run at `path`, and all that was added to its folder, gives
    way to the new one once that is complete. With `at_once` nothing shows under its name before it
    is complete. Nothing is kept in memory but the list of files.

    Raises:
        BadRun: the manifest contradicts itself, or asks for more than a reader would accept.
        ResourceError: the path cannot hold a new run (see `check_target`), another writer has it,
            or the disk is full or read-only, then or during any later call.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: RunManifest,
        overwrite: bool = False,
        *,
        at_once: bool = False,
    ) -> None:
        manifest = manifest.model_copy(
            update={"committed_steps": (), "files": {}, "repaired": False, "lost": {}}
        )
        invariants.check(manifest, MANIFEST)
        self._manifest = manifest
        self._layout = layout_of(manifest)
        self._target = Target(path, overwrite=overwrite)
        self._at_once = at_once
        self._listed: dict[str, FileRecord] = {}
        self._pending: dict[str, FileRecord] = {}
        self._num_steps = 0
        self._pool = ThreadPoolExecutor(_FLUSHERS)

    def __enter__(self) -> Self:
        with self._disk():
            self._target.open()
            try:
                check_space(self._target.folder, sum(a.nbytes for a in self._layout.arrays))
                for name in self._layout.group_files:
                    self._put(name, document_bytes(group_document()))
                for spec in self._layout.arrays:
                    self._put(spec.metadata_file, document_bytes(spec.document()))
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def write_step(
        self,
        index: int,
        latent: NDArray[np.float32],
        stats: Mapping[str, NDArray[np.float32]],
        tokens: Mapping[str, NDArray[np.float32]] | None = None,
        proof: Mapping[str, NDArray[np.float32]] | None = None,
        outputs: NDArray[np.uint16] | None = None,
    ) -> None:
        """Write the network input of one evaluation and its metrics.

        Args:
            index: position in `manifest.steps`; steps are written and committed in order.
            latent: (sample, channel, y, x) float32.
            stats: every statistic of the manifest, each (branch, sample, layer, head) float32, with
                the branches that this step evaluates, in the order of its record.
            tokens: every token statistic, likewise, each (branch, sample, layer, head, token).
            proof: the errors of `ditscope.runs.proof`, each as a statistic; NaN where nothing was
                rebuilt.
            outputs: what `ditscope.runs.outputs.words_of` keeps of the network's outputs, (branch,
                sample, word), where the manifest has `output_numbers`.

        Raises:
            BadRequest: out of order, a statistic is missing or unknown, or a shape is wrong.
            NumericalError: the latent is not finite.
        """
        self._expect_step(index)
        groups = (
            ("stats", stats, self._layout.stats),
            ("tokens", tokens or {}, self._layout.tokens),
            ("proof", proof or {}, self._layout.proof),
        )
        for field, given, known in groups:
            if given.keys() != known.keys():
                raise BadRequest(
                    f"statistics {listed(sorted(given)) or 'none'}",
                    field=field,
                    expected=listed(sorted(known)) or "none",
                )
        _expect_finite(latent, f"step {index}")
        self._put_block(self._layout.latents, latent, step=index)
        spec = self._layout.outputs
        if (outputs is None) != (spec is None):
            raise BadRequest("are missing" if spec else "are not kept", field="outputs")
        if outputs is not None and spec is not None:
            self._put_block(spec, self._all_branches(index, outputs, 0), step=index)
        for _, given, known in groups:
            for name, spec in known.items():
                self._put_block(spec, self._all_branches(index, given[name], np.nan), step=index)

    def write_qk(
        self,
        step: int,
        layer: int,
        q: NDArray[np.generic],
        k: NDArray[np.generic],
        lse: NDArray[np.float32],
        first_sample: int = 0,
        witness: Witness | None = None,
    ) -> None:
        """Write what rebuilds every attention map of one layer at one of `manifest.qk_steps`.

        The samples may be all, or those of one of `manifest.batches` that follow each other.

        Args:
            step: position in `manifest.steps`.
            layer: index of the site.
            q: (branch, sample, head, query, head_width), as the kernel saw it: float32, float16,
                or the bits of bfloat16 as uint16. Branches as in `write_step`.
            k: (branch, sample, head, key, head_width), likewise.
            lse: (branch, sample, head, query) float32, natural log of the softmax denominator.
            first_sample: index of the first sample of q, k and lse.
            witness: what the kernel said of the same samples, where this step is proven.

        Raises:
            BadRequest: out of order, this step is not kept, or a shape or type is wrong.
        """
        self._expect_step(step)
        if step not in self._manifest.qk_steps:
            raise BadRequest(
                f"Q and K of step {step}", expected=f"a step of {listed(self._manifest.qk_steps)}"
            )
        place = {"step": self._manifest.qk_steps.index(step), "layer": layer}
        parts: dict[str, NDArray[np.generic]] = {"q": q, "k": k, "lse": lse}
        if witness is not None:
            parts |= {"values": witness.values, "outputs": witness.outputs}
        if parts.keys() != self._layout.qk.keys():
            raise BadRequest(
                f"{listed(parts)} of step {step}", expected=listed(self._layout.qk), field="qk"
            )
        for name, values in parts.items():
            full = self._all_branches(step, values, 0 if name in ("q", "k") else np.nan)
            self._put_block(self._layout.qk[name], full, first_sample, **place)

    def commit_step(self, index: int) -> None:
        """Make a step part of the run: when this returns it survives a crash or a power cut.

        Raises:
            BadRequest: something of the step is not written yet, or out of order.
        """
        self._expect_step(index)
        self._expect_written(self._layout.step_files(index))
        self._commit(self._num_steps + 1)
        if not (self._target.replaces or self._at_once):
            with self._disk():
                self._target.publish()

    def write_final(
        self, latents: NDArray[np.float32], masks: NDArray[np.float32] | None = None
    ) -> None:
        """Latents (sample, channel, y, x) and masks (sample, y, x). Raises as `write_step`."""
        _expect_finite(latents, "the final latents")
        self._put_block(self._layout.final, latents)
        if masks is not None and self._layout.masks:
            self._put_block(self._layout.masks, masks)

    def write_image(self, sample: int, pixels: NDArray[np.uint8]) -> None:
        """Write one picture, (y, x, 3) uint8. Raises BadRequest for anything else."""
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise BadRequest(
                f"{pixels.dtype} of shape {pixels.shape}",
                field="pixels",
                expected="uint8 of shape (y, x, 3)",
            )
        if not 0 <= sample < len(self._manifest.labels):
            raise BadRequest(f"sample {sample}", expected=f"0 to {len(self._manifest.labels) - 1}")
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        self._put(self._layout.image_files[sample], stream.getvalue())

    def adopt(self, name: str, file: Path, record: FileRecord) -> None:
        """Take a finished chunk or picture of another run: linked where the disk can, else copied.

        Args:
            name: the file of this run that it is to be.
            file: where it is.
            record: what the manifest of the other run says of it; not compared with it here.
        """
        path = self._target.folder / name
        with self._disk():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, path)
            except OSError:
                shutil.copyfile(file, path)
        self._pending[name] = record

    def complete(self) -> None:
        """Seal the run, and put it in the place of the one it replaces, if any.

        Raises:
            BadRequest: a step, the final latents or an image is missing.
        """
        if self._num_steps < len(self._manifest.steps):
            raise BadRequest(
                f"{self._num_steps} of {len(self._manifest.steps)} steps are committed"
            )
        self._expect_written(self._layout.end_files)
        manifest = self._commit(self._num_steps)
        with self._disk():
            with new_file(self._target.folder / COMPLETE) as beside:
                beside.write_bytes(seal_of(manifest))
            self._target.publish()

    def _all_branches(
        self, step: int, values: NDArray[np.generic], absent: float
    ) -> NDArray[np.generic]:
        """`values` of the branches that `step` evaluates, on the branch axis of the run."""
        evaluated, axis = self._manifest.steps[step].branches, self._layout.branches
        if len(values) != len(evaluated):
            raise BadRequest(
                f"{len(values)} branches", field=f"step {step}", expected=listed(evaluated)
            )
        if evaluated == axis:
            return values
        full = np.full((len(axis), *values.shape[1:]), absent, dtype=values.dtype)
        full[[axis.index(branch) for branch in evaluated]] = values
        return full

    def _put_block(
        self,
        spec: ArraySpec,
        values: NDArray[np.generic],
        first_sample: int | None = None,
        **position: int,
    ) -> None:
        """Write the chunks at `position`; `values` has the axes of `spec` that it does not name.

        With `first_sample`, values may hold some samples only: whole chunks from that one on.
        """
        free = [dim for dim in spec.dims if dim not in position]
        sizes = dict(zip(spec.dims, spec.shape, strict=True))
        axis, depth = free.index(SAMPLE), spec.samples_per_chunk
        if first_sample is not None and values.ndim == len(free):
            some = values.shape[axis]
            if first_sample % depth == some % depth == 0 < some <= sizes[SAMPLE] - first_sample:
                sizes[SAMPLE] = some
        shape = tuple(sizes[dim] for dim in free)
        if values.shape != shape or values.dtype != spec.dtype:
            raise BadRequest(
                f"{values.dtype} of shape {values.shape}",
                field=spec.name,
                expected=f"{spec.dtype} of shape {shape}",
            )
        for dim, index in position.items():
            if not 0 <= index < spec.shape[spec.dims.index(dim)]:
                raise BadRequest(f"{dim} {index} is outside {spec.name}")
        start = (first_sample or 0) // depth
        files = list(spec.chunk_files(**position))[start : start + sizes[SAMPLE] // depth]
        for name, piece in zip(files, np.split(values, len(files), axis=axis), strict=True):
            self._put(name, encode(piece))

    def _put(self, name: str, data: bytes) -> None:
        path = self._target.folder / name
        with self._disk():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._pending[name] = record_of(data)

    def _commit(self, num_steps: int) -> bytes:
        """List all pending files in `run.json`, after they are on the disk; its bytes."""
        files = self._listed | self._pending
        manifest = self._manifest.model_copy(
            update={"committed_steps": tuple(range(num_steps)), "files": files}
        )
        data = manifest.model_dump_json(indent=1).encode()
        folder = self._target.folder
        beside = folder / _NEXT_MANIFEST
        changed = {PurePosixPath(name).parent for name in self._pending}
        if not self._listed:  # the folders themselves are new
            changed = {parent for name in self._pending for parent in PurePosixPath(name).parents}
        with self._disk():
            beside.write_bytes(data)
            self._flush([beside, *(folder / name for name in (*self._pending, *changed))])
            beside.replace(folder / MANIFEST)
            self._listed, self._pending, self._num_steps = files, {}, num_steps
            flush(folder)
        return data

    def _flush(self, paths: Iterable[Path]) -> None:
        for _ in self._pool.map(flush, paths):
            pass

    def _expect_step(self, index: int) -> None:
        if index != self._num_steps or index >= len(self._manifest.steps):
            raise BadRequest(
                f"step {index} of {len(self._manifest.steps)}",
                expected=f"step {self._num_steps}, the first that is not committed",
            )

    def _expect_written(self, names: Iterable[str]) -> None:
        missing = [name for name in names if name not in self._pending]
        if missing:
            raise BadRequest(f"not written yet: {listed(missing)}", file=self._target.path)

    def _close(self) -> None:
        """Remove what no manifest lists, and let go of the path."""
        self._pool.shutdown()
        unlisted = {*self._pending, _NEXT_MANIFEST} - _listed_on_disk(self._target.folder)
        for name in unlisted:
            with contextlib.suppress(OSError):
                (self._target.folder / name).unlink()
        self._target.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as reason:
            raise ResourceError(
                f"cannot be written: {reason.strerror or reason}", file=self._target.path
            ) from reason


def record_of(data: bytes) -> FileRecord:
    """Size and digest of a file that holds `data`."""
    return FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _listed_on_disk(folder: Path) -> set[str]:
    """What `run.json` lists: a signal may have come between replacing it and noting so here."""
    try:
        return set(json.loads((folder / MANIFEST).read_bytes())["files"])
    except OSError:
        return set()


def _expect_finite(latents: NDArray[np.float32], where: str) -> None:
    if not np.isfinite(latents).all():
        raise NumericalError(f"NaN or Inf in {where}")
