"""Replayed attention kept beside the run, so that it is computed once and then read without torch.

    runs/dog/cache/     one file per step, sample and layer: Q, K and log-sum-exp of its branches

What lies there is no part of the run: nothing lists it, it can be deleted at any time, and the
files used longest ago go when they are together larger than a limit. An entry is written beside its
name and renamed, begins with what it belongs to and ends with a digest; one that is damaged, cut
short or of another run is as good as none. Where the folder cannot be written nothing is cached.
Readers and writers need no lock: whoever comes too late to read an entry replays it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from ditscope.core.manifest import Record
from ditscope.errors import BadRequest, foreign
from ditscope.runs.arrays import ITEM_BYTES
from ditscope.runs.attention_rows import Operands
from ditscope.runs.layout import STORED_TYPE, Layout
from ditscope.runs.operands import Place
from ditscope.runs.outputs import Agreement

CACHE = "cache"
DEFAULT_BYTES = 2**30
SETTING = "DITSCOPE_REPLAY_CACHE"
"""Environment variable: MiB that the cache of a run may take; 0 turns it off."""

_HEADER_BYTES, _DIGEST_BYTES = 1024, 32
_ENTRY = re.compile(r"step-\d+-sample-\d+-layer-\d+-[0-9a-f]{16}(\.tmp-[0-9a-f]{8})?")
_MOST_OF_FREE = 0.1
"""Share of the free disk that one forward may take: a cache never fills one."""


class _Header(Record):
    key: str
    numbers: str  # what Q and K were computed in
    scale: float
    checked: bool  # whether the recording could be compared with
    exact: bool = False
    difference: float = 0.0
    largest: float = 0.0
    elsewhere: str = ""


class Usage(NamedTuple):
    """What a cache takes."""

    files: int
    size: int  # bytes


def limit_from_environment() -> int:
    """Bytes that the cache of a run may take. Raises BadRequest."""
    text = os.environ.get(SETTING, "").strip()
    if not text:
        return DEFAULT_BYTES
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(
            f"found {foreign(text)!r}", field=SETTING, expected="MiB, a whole number; 0: no cache"
        )
    return int(text) * 2**20


class ReplayCache:
    """Operands of replayed calls of one run, on its disk, at most `limit` bytes of them."""

    def __init__(self, path: Path, layout: Layout, limit: int) -> None:
        self.folder = path / CACHE
        self.limit = limit
        self._layout = layout

    def get(self, step: int, sample: int, layer: int) -> dict[Place, Operands] | None:
        """Every branch of a call, if it is there and whole."""
        with self._opened(make=False) as folder:
            if folder is None:
                return None
            name = self._name(step, sample, layer)
            data = _read(folder, name, self._most_bytes(layer))
            found = None if data is None else self._unpacked(data, (step, sample, layer))
            if found:
                with contextlib.suppress(OSError):  # the newest is the last to go
                    os.utime(name, dir_fd=folder, follow_symlinks=False)
            return found

    def put(self, found: Mapping[Place, Operands]) -> None:
        """Keep what one forward gave, if it fits in the limit and the disk has room."""
        entries: dict[str, bytes] = {}
        for step, sample, layer in {(place[0], *place[2:]) for place in found}:
            entry = self._packed(found, (step, sample, layer))
            if entry is not None:
                entries[self._name(step, sample, layer)] = entry
        size = sum(map(len, entries.values()))
        if not entries or size > self.limit:
            return
        with self._opened(make=True) as folder:
            if folder is None:
                return
            with contextlib.suppress(OSError):  # a disk that is full or read-only: no cache
                room = os.fstatvfs(folder)
                if size > _MOST_OF_FREE * room.f_bavail * room.f_frsize:
                    return
                self._evict(folder, size)
                for name, data in entries.items():
                    _write(folder, name, data)

    def usage(self) -> Usage:
        """What it takes now."""
        with self._opened(make=False) as folder:
            sizes = [size for _, _, size in _entries(folder)] if folder is not None else []
        return Usage(len(sizes), sum(sizes))

    @contextlib.contextmanager
    def _opened(self, *, make: bool) -> Iterator[int | None]:
        """The folder, opened: what is done in it is done there, whatever links are made meanwhile.

        None where there is none, it is a link, or it may not be used.
        """
        folder = None
        if self.limit:
            with contextlib.suppress(OSError):
                if make:
                    with contextlib.suppress(FileExistsError):
                        self.folder.mkdir()
                folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield folder
        finally:
            if folder is not None:
                os.close(folder)

    def _evict(self, folder: int, coming: int) -> None:
        """Remove what was used longest ago until `coming` more bytes fit."""
        there = sorted(_entries(folder))
        total = coming + sum(size for _, _, size in there)
        for _, name, size in there:
            if total <= self.limit:
                return
            with contextlib.suppress(FileNotFoundError):  # another reader was faster
                os.unlink(name, dir_fd=folder)
            total -= size

    @cached_property
    def _settings(self) -> bytes:
        """Everything of the manifest that decides what a replay gives."""
        bare = {"committed_steps": (), "files": {}, "lost": {}, "repaired": False}
        return self._layout.manifest.model_copy(update=bare).model_dump_json().encode()

    def _key(self, step: int) -> str:
        """What an entry belongs to: the settings of the run, and the latents of the step."""
        digest = hashlib.sha256(self._settings)
        for name in self._layout.latents.chunk_files(step=step):
            digest.update(self._layout.manifest.files[name].sha256.encode())
        return digest.hexdigest()

    def _name(self, step: int, sample: int, layer: int) -> str:
        return f"step-{step:05d}-sample-{sample:04d}-layer-{layer:03d}-{self._key(step)[:16]}"

    def _shapes(self, step: int, layer: int) -> tuple[tuple[int, ...], ...]:
        """Of q, k and log-sum-exp of all branches."""
        site = self._layout.manifest.sites[layer]
        lead = (len(self._layout.manifest.steps[step].branches), site.heads)
        return (
            (*lead, site.queries, site.head_width),
            (*lead, site.keys, site.head_width),
            (*lead, site.queries),
        )

    def _most_bytes(self, layer: int) -> int:
        site = self._layout.manifest.sites[layer]
        numbers = site.heads * ((site.queries + site.keys) * site.head_width + site.queries)
        return _HEADER_BYTES + len(self._layout.branches) * numbers * 4 + _DIGEST_BYTES

    def _packed(self, found: Mapping[Place, Operands], at: tuple[int, int, int]) -> bytes | None:
        step, sample, layer = at
        branches = self._layout.manifest.steps[step].branches
        each = [found[step, branch, sample, layer] for branch in branches]
        first, agreement = each[0], each[0].agreement
        header = _Header(
            key=self._key(step),
            numbers=first.numbers,
            scale=first.scale,
            checked=agreement is not None,
            **(vars(agreement) if agreement else {}),
        )
        head = header.model_dump_json().encode()
        parts = [np.stack([getattr(one, name) for one in each]) for name in ("q", "k", "lse")]
        shapes = tuple(part.shape for part in parts)
        if len(head) > _HEADER_BYTES or shapes != self._shapes(step, layer):
            return None
        little = (part.astype(part.dtype.newbyteorder("<")).tobytes() for part in parts)
        body = head.ljust(_HEADER_BYTES) + b"".join(little)
        return body + hashlib.sha256(body).digest()

    def _unpacked(self, data: bytes, at: tuple[int, int, int]) -> dict[Place, Operands] | None:
        step, sample, layer = at
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        try:
            header = _Header.model_validate_json(body[:_HEADER_BYTES])
        except ValidationError:
            return None
        if header.key != self._key(step) or header.numbers not in STORED_TYPE:
            return None
        stored = STORED_TYPE[header.numbers]
        parts, start = [], _HEADER_BYTES
        for shape, dtype in zip(
            self._shapes(step, layer), (stored, stored, "float32"), strict=True
        ):
            size = int(np.prod(shape)) * ITEM_BYTES[dtype]
            if start + size > len(body):
                return None
            little = np.frombuffer(body[start : start + size], np.dtype(dtype).newbyteorder("<"))
            parts.append(little.astype(dtype, copy=False).reshape(shape))
            start += size
        if start != len(body):
            return None
        known = header.model_dump(include={"exact", "difference", "largest", "elsewhere"})
        return {
            (step, branch, sample, layer): Operands(
                *(part[index] for part in parts),
                scale=header.scale,
                source="replayed",
                numbers=header.numbers,
                agreement=Agreement(**known) if header.checked else None,
            )
            for index, branch in enumerate(self._layout.manifest.steps[step].branches)
        }


def _entries(folder: int) -> Iterator[tuple[int, str, int]]:
    """When each of our files in `folder` was last used, its name and its size."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _ENTRY.fullmatch(name):
                with contextlib.suppress(OSError):
                    about = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if not stat.S_ISDIR(about.st_mode):
                        yield about.st_mtime_ns, name, about.st_size


def _read(folder: int, name: str, limit: int) -> bytes | None:
    """The bytes of a regular file of at most `limit`; None for anything else."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None
    try:
        with open(file, "rb") as stream:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
                return None
            return stream.read(limit)
    except OSError:
        return None


def _write(folder: int, name: str, data: bytes) -> None:
    """Raises OSError, and leaves nothing, if it cannot be written."""
    beside = f"{name}.tmp-{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(beside, flags, 0o644, dir_fd=folder), "wb") as stream:
            stream.write(data)
        os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise
