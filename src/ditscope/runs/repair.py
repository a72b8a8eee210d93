"""Making a damaged or interrupted run one that opens normally, with everything of it that is whole.

    repair_run("runs/dog")          # or: ditscope info runs/dog --repair

Every listed file is hashed. What is not whole is named in `run.json` under `lost`, with the record
that it had: a later repair takes it back if the original file stands there again. Its bytes stay
where they are, and nothing is renamed or renumbered, so that every other file, step and coordinate
is what it was. A lost statistic or latent reads as NaN; lost Q and K are had by replay; reading
anything else that was lost is an error that names it. A `zarr.json` follows from the manifest and
is written anew. Then the run is sealed, with its steps that are whole.

A repair that is killed leaves the run as it was, or repaired. What vouches for all else is
`run.json`: where that is not what was written, nothing can be told apart from damage, and the run
is left alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ditscope.core import strict_json
from ditscope.core.atomic import MARK, flush, new_file
from ditscope.core.lock import release_lock, take_lock
from ditscope.core.manifest import FileRecord, RunManifest
from ditscope.errors import BadRun, ResourceError
from ditscope.runs.arrays import check_array, check_group, document_bytes, group_document
from ditscope.runs.files import RunFiles, irregular_folders, read_regular
from ditscope.runs.layout import (
    COMPLETE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_SEAL_BYTES,
    Layout,
    layout_of,
    seal_of,
    seals,
)
from ditscope.runs.reader import check_listed, ended, open_run, parsed_manifest
from ditscope.runs.target import interrupted_swap
from ditscope.runs.writer import record_of

_LEFT = re.compile(rf"(run\.json|COMPLETE|zarr\.json)\.tmp-{MARK}")
"""What a repair that was killed left of the files that it writes."""

SEAL_FLIPS = 4
"""A seal that is wrong in so few of its 64 digits was damaged itself; another digest differs in
about 60."""


@dataclass(frozen=True)
class Repair:
    """What `repair_run` kept and what it could not."""

    path: Path
    steps: int  # evaluations that are committed, of `planned`
    planned: int
    kept_files: int
    lost: tuple[str, ...]  # files that are damaged or missing, now or at an earlier repair
    lost_steps: tuple[int, ...]  # steps of which a file is lost
    never_written: tuple[int, ...]  # steps that the sampling did not come to
    rebuilt: tuple[str, ...]  # files written anew: each follows from the manifest
    regained: tuple[str, ...]  # files that were lost and are whole again
    changed: bool  # False if there was nothing to do

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.lost and not self.never_written


@dataclass
class _Findings:
    """What is to be done to a run."""

    folder: Path
    before: RunManifest
    manifest: RunManifest  # as it will be; the same object if it stays
    sealed: bytes  # what COMPLETE holds now, if it vouches for run.json or is damaged; else b""
    data: bytes  # what run.json holds now
    rebuilt: dict[str, bytes] = field(default_factory=dict)
    regained: tuple[str, ...] = ()


def repair_run(path: str | os.PathLike[str]) -> Repair:
    """Keep what is whole of the run directory `path`, name what is not, and seal it.

    A run that is whole is left as it is. Links are not followed, and files that the run does not
    list are not touched.

    Raises:
        BadRun: no run; its manifest is damaged, or is not the one that was sealed; a link or a file
            stands in place of a folder; or no step has a file that is whole.
        ResourceError: the run is being written, or the disk is full or read-only.
    """
    target = Path(os.path.realpath(path))
    if not target.exists() and not interrupted_swap(target):
        open_run(target)  # raises what is wrong with the path
    lock_file = target.with_name(f"{target.name}.lock")
    try:
        lock = take_lock(
            lock_file, busy="the run is being written", fix="repair it when that has ended"
        )
        try:
            if older := interrupted_swap(target):
                older.rename(target)
                flush(target.parent)
            found = _examine(target)
            changed = _apply(found)
        finally:
            release_lock(lock_file, lock)
    except OSError as reason:
        raise ResourceError(
            f"cannot be repaired: {reason.strerror or reason}", file=target
        ) from reason
    open_run(target)
    return _report(found, changed=changed)


def _report(found: _Findings, *, changed: bool) -> Repair:
    manifest = found.manifest
    layout, planned = layout_of(manifest), len(manifest.steps)
    committed = manifest.committed_steps
    return Repair(
        path=found.folder,
        steps=len(committed),
        planned=planned,
        kept_files=len(manifest.files),
        lost=tuple(manifest.lost),
        lost_steps=tuple(
            step for step in committed if manifest.lost.keys() & {*layout.step_files(step)}
        ),
        never_written=tuple(range(len(committed), planned)),
        rebuilt=tuple(found.rebuilt),
        regained=found.regained,
        changed=changed,
    )


def _examine(folder: Path) -> _Findings:
    """Hash everything; nothing is written. Raises BadRun."""
    data = read_regular(folder / MANIFEST, MAX_MANIFEST_BYTES)
    manifest = parsed_manifest(data, folder / MANIFEST)
    sealed = _seal(folder, data)
    layout = layout_of(manifest)
    check_listed(layout, folder / MANIFEST, at_end=ended(layout))
    _expect_real_folders(folder, layout)
    rebuilt = dict(_damaged_documents(folder, layout))
    files = {name: manifest.files.get(name) for name in layout.metadata_files}
    kept = {
        name: record_of(rebuilt[name]) if name in rebuilt else record
        for name, record in files.items()
        if record
    }
    lost: dict[str, FileRecord] = {}
    whole = RunFiles(folder, manifest.files | manifest.lost)
    for name, record in whole.records.items():
        if name in files:
            continue
        try:
            whole.read(name)
        except BadRun:
            lost[name] = record
        else:
            kept[name] = record
    steps = {name for step in manifest.committed_steps for name in layout.step_files(step)}
    if not steps & kept.keys():
        raise BadRun("no file of any step is whole", file=folder)
    return _Findings(
        folder=folder,
        before=manifest,
        manifest=_repaired(layout, kept, lost, sealed=bool(sealed)),
        sealed=sealed,
        data=data,
        rebuilt=rebuilt,
        regained=tuple(name for name in manifest.lost if name in kept),
    )


def _repaired(
    layout: Layout,
    kept: dict[str, FileRecord],
    lost: dict[str, FileRecord],
    *,
    sealed: bool,
) -> RunManifest:
    """The manifest as it is to be: the very one if there is nothing to change."""
    manifest = layout.manifest
    order = layout.files(len(manifest.committed_steps), ended=ended(layout))
    files = {name: kept[name] for name in order if name in kept}
    lost = {name: lost[name] for name in order if name in lost}
    if sealed and files == manifest.files and lost == manifest.lost:
        return manifest
    return manifest.model_copy(update={"files": files, "lost": lost, "repaired": True})


def _seal(folder: Path, data: bytes) -> bytes:
    """What COMPLETE holds; b"" if there is none. Raises BadRun if it is of another manifest."""
    file = folder / COMPLETE
    if not os.path.lexists(file):
        return b""
    sealed, expected = read_regular(file, MAX_SEAL_BYTES), seal_of(data)
    if seals(sealed, data):
        return sealed
    flips = sum(a != b for a, b in zip(sealed, expected, strict=False))
    if flips <= SEAL_FLIPS and len(sealed) <= len(expected):
        return sealed or b"\n"  # damaged itself, or cut short
    raise BadRun(
        f"{MANIFEST} is not the one that was sealed, so what it says cannot be told from damage",
        file=file,
        fix=f"put the original {MANIFEST} back; if it was changed on purpose, remove {COMPLETE} "
        "and repair again",
    )


def _expect_real_folders(folder: Path, layout: Layout) -> None:
    """Raise BadRun if a link or a file stands where a folder belongs; one that is gone is made."""
    names = layout.files(len(layout.manifest.committed_steps), ended=ended(layout))
    for error in irregular_folders(folder, names):
        if error.problem != "is missing":
            raise error


def _damaged_documents(folder: Path, layout: Layout) -> Iterator[tuple[str, bytes]]:
    """Every `zarr.json` that is not whole, with what belongs there."""
    files = RunFiles(folder, layout.manifest.files)
    for name in layout.group_files:
        try:
            file = str(folder / name)
            check_group(strict_json.parse(files.read(name), file=file, error=BadRun), file)
        except BadRun:
            yield name, document_bytes(group_document())
    for spec in layout.arrays:
        name = spec.metadata_file
        try:
            file = str(folder / name)
            check_array(strict_json.parse(files.read(name), file=file, error=BadRun), spec, file)
        except BadRun:
            yield name, document_bytes(spec.document())


def _apply(found: _Findings) -> bool:
    """Write what `found` says; whether anything was written.

    `run.json` and `COMPLETE` cannot change at one moment, so the old and the new `run.json` are
    both sealed while the one takes the place of the other.
    """
    folder, data = found.folder, found.data
    for left in [*_leftovers(folder, layout_of(found.manifest))]:
        left.unlink()
    for name, document in found.rebuilt.items():
        _make_folders(folder, Path(name).parent)
        _write(folder / name, document)
    new = data
    if found.manifest is not found.before:
        new = found.manifest.model_dump_json(indent=1).encode()
    if new != data:
        if found.sealed:
            _write(folder / COMPLETE, seal_of(data) + seal_of(new))
        _write(folder / MANIFEST, new)
    if found.sealed != seal_of(new):
        _write(folder / COMPLETE, seal_of(new))
    return bool(found.rebuilt) or new != data or found.sealed != seal_of(new)


def _write(path: Path, data: bytes) -> None:
    with new_file(path) as beside:
        beside.write_bytes(data)


def _make_folders(folder: Path, inner: Path) -> None:
    """Make the folders of a lost file, each listed in the one that it is in."""
    for parent in [*reversed(inner.parents), inner]:
        if not (folder / parent).is_dir():
            (folder / parent).mkdir()
            flush((folder / parent).parent)


def _leftovers(folder: Path, layout: Layout) -> Iterator[Path]:
    for root in (folder, *{(folder / name).parent for name in layout.metadata_files}):
        names = os.listdir(root) if root.is_dir() else []
        yield from (root / name for name in names if _LEFT.fullmatch(name))
