"""Files and folders that exist whole or not at all.

Everything is written beside its target, on the same file system, flushed to the disk, and then
renamed. A crash, a full disk or a signal leaves the old content or the new, and at worst a
`*.tmp-*` or `*.old-*` beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import shutil
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

from ditscope.errors import BadRequest, ResourceError, listed

MARK = r".*-\d+-[0-9a-f]{8}"
"""Host, process and random number: the end of the name of what is not finished, as a pattern."""

UNFINISHED = re.compile(rf".+\.(tmp|old)-{MARK}")
"""Names of what a killed process leaves."""


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal. Raises OSError if it cannot be read."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to; the file takes the place of `path` when the block ends well.

    Raises:
        ResourceError: the file cannot be written (disk full, no rights, no such folder). The old
            file, if any, is untouched and the temporary one is gone.
    """
    target = Path(path)
    beside = _beside(target, "tmp")
    try:
        yield beside
        flush(beside)
        beside.replace(target)
        flush(target.parent)
    except OSError as reason:
        raise _cannot_write(target, reason) from None
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str], *, replaceable: Collection[str] | None = None
) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `path` when the block ends well.

    An existing `path` is replaced only if `replaceable` is given and names every file in it (by
    relative path, with `/`), so that a mistyped destination never deletes a stranger's files.

    Raises:
        BadRequest: `path` exists and may not be replaced. Raised before the block runs.
        ResourceError: it cannot be written; whatever was at `path` is still there.
    """
    target = Path(path)
    check_replaceable(target, replaceable)
    beside = _beside(target, "tmp")
    try:
        beside.mkdir()
        yield beside
        for entry in (*beside.rglob("*"), beside):
            flush(entry)
        _swap(beside, target)
    except OSError as reason:
        raise _cannot_write(target, reason) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_space(folder: Path, size: int) -> None:
    """Raise ResourceError unless 1.2 times `size` bytes are free where `folder` is."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as reason:
        raise _cannot_write(folder, reason) from None
    if free < 1.2 * size:
        raise ResourceError(
            f"{free / 1e9:.2f} GB free, {1.2 * size / 1e9:.2f} GB needed", file=folder
        )


def flush(path: Path) -> None:
    """Force a file, or the list of names of a folder, onto the disk."""
    if path.is_dir() and os.name != "posix":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        flush(target.parent)
        return
    old = _beside(target, "old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(target: Path, replaceable: Collection[str] | None) -> None:
    """Raise BadRequest if `new_folder` would refuse to make `target`."""
    if not target.exists() and not target.is_symlink():
        return
    if replaceable is None:
        raise BadRequest("already exists", file=target, fix="choose another name, or overwrite it")
    if target.is_symlink() or not target.is_dir():
        raise BadRequest("is not a folder, so it is not replaced", file=target)
    files = (path for path in target.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(target).as_posix() for path in files)
    strange = sorted(itertools.islice((name for name in names if name not in replaceable), 1000))
    if strange:
        raise BadRequest(
            f"holds files that would be lost: {listed(strange)}",
            file=target,
            fix="choose another name, or remove that folder yourself",
        )


def leftovers(target: Path, purpose: Literal["tmp", "old"]) -> Iterator[Path]:
    """Folders that a killed writer of `target` left beside it. Call it when no other can write."""
    name = re.compile(re.escape(f"{target.name}.{purpose}-") + MARK)
    if target.parent.is_dir():
        for entry in target.parent.iterdir():
            if name.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                yield entry


def _beside(target: Path, purpose: Literal["tmp", "old"]) -> Path:
    mark = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.with_name(f"{target.name}.{purpose}-{mark}")


def _cannot_write(target: Path, reason: OSError) -> ResourceError:
    return ResourceError(f"cannot be written: {reason.strerror or reason}", file=target)
