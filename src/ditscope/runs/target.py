"""The place of a new run: checked before any compute, locked, filled beside its name, published.

A run grows in `NAME.tmp-<host>-<pid>-<random>`. It gets its name with its first whole step, or,
where it replaces an older run, only when it is complete. `NAME.lock` is held meanwhile; the system
lets go of it when the process ends, however it ends, so a lock is never stale and whatever lies
beside `NAME` while we hold it was left by a crash.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from pathlib import Path

from ditscope.core.atomic import flush, leftovers
from ditscope.core.lock import release_lock, take_lock
from ditscope.errors import ResourceError
from ditscope.runs.arrays import DATA
from ditscope.runs.layout import MANIFEST


def check_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The real path where a run can be written. Writes nothing; call it before any compute.

    Raises:
        ResourceError: its parent is missing or read-only, it is a file, it holds a run and
            `overwrite` is false, or it holds anything else.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ResourceError(
            "its parent folder does not exist", file=target, fix=f"mkdir -p {target.parent}"
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ResourceError("its parent folder is not writable", file=target)
    if not target.exists():
        return target
    if not target.is_dir():
        raise ResourceError("is a file", file=target, expected="the name of a new folder")
    if holds_run(target):
        if not overwrite:
            raise ResourceError(
                "already holds a run", file=target, fix="choose another name, or overwrite it"
            )
    elif any(target.iterdir()):
        raise ResourceError("holds other files", file=target, fix="choose the name of a new folder")
    return target


def holds_run(folder: Path) -> bool:
    """Whether `folder` holds what a run writer leaves, whole or not."""
    return (folder / MANIFEST).is_file() and (folder / DATA).is_dir()


def parts_folder(target: Path) -> Path:
    """Where parts of the run `target` wait until all of its samples are drawn."""
    return target.with_name(f"{target.name}.parts")


def interrupted_swap(target: Path) -> Path | None:
    """The older run that stood at `target`, if a crash left it without its name."""
    if os.path.lexists(target):
        return None
    older = [folder for folder in leftovers(target, "old") if holds_run(folder)]
    return older[0] if len(older) == 1 else None


class Target:
    """Where a run is written now (`folder`), and the moves that give it its name.

    Between `open` and `close` no other writer has the same name. At every moment `NAME` is absent,
    the old run, or the new one as far as it is committed.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool) -> None:
        self.path = check_target(path, overwrite=overwrite)
        self.folder = self.path
        self.replaces = False
        self._overwrite = overwrite
        self._lock_file = self.path.with_name(f"{self.path.name}.lock")
        self._lock: int | None = None

    def open(self) -> None:
        """Take the lock, clear what crashes left, and make the folder to write in.

        Raises:
            ResourceError: another writer has this name, or as `check_target`.
        """
        self._lock = take_lock(
            self._lock_file,
            busy="another run is being written to this name",
            fix="wait for it, or choose another name",
        )
        try:
            self._repair()
            check_target(self.path, overwrite=self._overwrite)
            self.replaces = holds_run(self.path)
            self.folder = self._new_name("tmp")
            self.folder.mkdir()
        except BaseException:
            self.close()
            raise

    def publish(self) -> None:
        """Give the folder its name, in the place of an older run if it replaces one."""
        if self.folder == self.path:
            return
        if self.replaces:
            old = self._new_name("old")
            self.path.rename(old)
            try:
                self.folder.rename(self.path)
            except OSError:
                old.rename(self.path)
                raise
        else:
            old = None
            self.folder.rename(self.path)
        self.folder = self.path
        flush(self.path.parent)
        if old:
            shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder if it never got its name, and let go of the lock."""
        if self.folder != self.path:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            release_lock(self._lock_file, self._lock)
            self._lock = None

    def _repair(self) -> None:
        older = interrupted_swap(self.path)
        if older:
            older.rename(self.path)
        for left in (*leftovers(self.path, "tmp"), *leftovers(self.path, "old")):
            shutil.rmtree(left, ignore_errors=True)

    def _new_name(self, purpose: str) -> Path:
        mark = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        return self.path.with_name(f"{self.path.name}.{purpose}-{mark}")
