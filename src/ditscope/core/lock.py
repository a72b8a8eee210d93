"""A lock that belongs to a process: the system frees it when that ends, so it is never stale."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

from ditscope.errors import ResourceError

_HELD = {errno.EAGAIN, errno.EACCES}


def take_lock(path: Path, *, busy: str, fix: str) -> int:
    """Lock `path`, made if need be, without waiting. Returns what `release_lock` needs.

    Raises:
        ResourceError: another process has it (the message is `busy` and who that is, then `fix`),
            or the file cannot be made or locked.
    """
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as reason:
            raise ResourceError(f"cannot be made: {reason.strerror}", file=path) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            owner = os.pread(lock, 200, 0).decode("ascii", "replace").strip()
            os.close(lock)
            if reason.errno not in _HELD:
                raise ResourceError(f"cannot be locked: {reason.strerror}", file=path) from None
            who = owner or "another process"
            raise ResourceError(f"{busy}, by {who}", file=path, fix=fix) from None
        if _is_same(lock, path):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return lock
        os.close(lock)  # its owner removed it between our opening and our locking


def release_lock(path: Path, lock: int) -> None:
    """Remove the file of a lock that `take_lock` gave, and let go of it."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(lock)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
