"""Reading files of a run that may be damaged or hostile: only listed, regular, unchanged ones."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ditscope.core.axes import SAMPLE
from ditscope.core.manifest import FileRecord
from ditscope.errors import BadRun
from ditscope.runs.arrays import ArraySpec
from ditscope.runs.chunks import decode
from ditscope.runs.layout import MAX_CHUNK_BYTES

MAX_FILE_BYTES = MAX_CHUNK_BYTES + 2**20
MAX_IMAGE_PIXELS = 64_000_000
READ_AS_NAN = ("latents", "stats/", "tokens/", "proof/")
"""Arrays of float32 of which a lost chunk hides no other; of what else was lost, reading fails."""
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


class LostFile(BadRun):
    """A file that a repair found damaged or missing is asked for."""


class RunFiles:
    """The files of a run directory, by their path in it. What is read here matches its record.

    `lost` are those that a repair found damaged or missing. Nothing is read of them.
    """

    def __init__(
        self, root: Path, records: Mapping[str, FileRecord], lost: Collection[str] = ()
    ) -> None:
        self.root = root
        self.records = records
        self.lost = frozenset(lost)

    def missing(self) -> Iterator[BadRun]:
        """One error for each listed file or folder that is absent, irregular or of another size."""
        yield from irregular_folders(self.root, self.records)
        for name, record in self.records.items():
            path = self.root / name
            error = _irregular(path, stat.S_ISREG, "a regular file")
            if error:
                yield error
            elif record.size > MAX_FILE_BYTES:
                yield _wrong_size(path, record.size, MAX_FILE_BYTES)
            elif (size := _size(path)) != record.size:
                yield _wrong_size(path, size, record.size)

    def read(self, name: str) -> bytes:
        """The bytes of a listed file.

        Raises:
            BadRun: it cannot be read, its size or digest is not the recorded one, or it was lost.
        """
        self.expect_kept(name)
        path, record = self.root / name, self.records[name]
        data = read_regular(path, record.size)
        if len(data) != record.size:
            raise _wrong_size(path, len(data), record.size)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise BadRun("its bytes are not the ones that were written", file=path)
        return data

    def expect_kept(self, *names: str) -> None:
        """Raise LostFile if one of the files was lost before a repair."""
        for name in self.lost.intersection(names):
            raise LostFile(
                "was lost before the run was repaired",
                file=self.root / name,
                fix="put the original file back and repair the run again",
            )

    def chunk(self, spec: ArraySpec, name: str) -> NDArray[np.generic]:
        """The values of one chunk of `spec`, of shape `spec.chunks`. Raises BadRun.

        A latent or statistic that was lost before a repair is NaN, as what was never measured is.
        """
        if name in self.lost and spec.name.startswith(READ_AS_NAN):
            return np.full(spec.chunks, np.nan, spec.dtype)
        return decode(self.read(name), spec, str(self.root / name))

    def block(
        self, spec: ArraySpec, samples: range | None = None, **position: int
    ) -> NDArray[np.generic]:
        """The values at one chunk `position`; the axes it names are dropped.

        `samples` are those of some whole chunks, all by default.

        Raises:
            BadRun: a chunk is missing or damaged.
        """
        names = list(spec.chunk_files(**position))
        if samples is not None:
            depth = spec.samples_per_chunk
            names = names[samples.start // depth : samples.stop // depth]
        pieces = [self.chunk(spec, name) for name in names]
        block = np.concatenate(pieces, axis=spec.dims.index(SAMPLE))
        return block.squeeze(tuple(spec.dims.index(dim) for dim in position))

    def image(self, name: str) -> NDArray[np.uint8]:
        """One picture (y, x, channel). Raises BadRun if it is not a PNG in RGB."""
        from PIL import Image

        path, data = self.root / name, self.read(name)
        width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
        if not data.startswith(_PNG_START) or width * height > MAX_IMAGE_PIXELS:
            raise BadRun("not a PNG picture of at most 64 Mpx", file=path)
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                pixels = np.asarray(picture)
        except (OSError, ValueError, SyntaxError):
            raise BadRun("a damaged PNG picture", file=path) from None
        if pixels.dtype != np.uint8 or pixels.shape != (height, width, 3):
            raise BadRun("a PNG picture that is not RGB", file=path)
        return pixels


def irregular_folders(root: Path, names: Iterable[str]) -> Iterator[BadRun]:
    """One error for each folder of the files `names` that is absent or no folder."""
    for folder in sorted({parent for name in names for parent in Path(name).parents}):
        error = _irregular(root / folder, stat.S_ISDIR, "a folder")
        if error and folder != Path():
            yield error


def read_regular(path: Path, limit: int) -> bytes:
    """Up to `limit` + 1 bytes of a regular file that is no link.

    Raises:
        BadRun: it is missing, a link, a folder or a device, or cannot be read.
    """
    error = _irregular(path, stat.S_ISREG, "a regular file")
    if error:
        raise error
    try:
        # Between the look and the opening it may have been replaced: no link, and no waiting.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(path, flags), "rb") as stream:
            return stream.read(limit + 1)
    except OSError as reason:
        raise _unread(path, reason, "a regular file") from None


def _irregular(path: Path, wanted: Callable[[int], bool], expected: str) -> BadRun | None:
    try:
        mode = path.lstat().st_mode
    except OSError as reason:
        return _unread(path, reason, expected)
    return None if wanted(mode) else BadRun("is something else", file=path, expected=expected)


def _unread(path: Path, reason: OSError, expected: str) -> BadRun:
    if isinstance(reason, FileNotFoundError):
        return BadRun("is missing", file=path, expected=expected)
    return BadRun(f"cannot be read: {reason.strerror}", file=path)


def _size(path: Path) -> int | None:
    """Size of a file; None if it is gone, for a writer may replace the run at this moment."""
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _wrong_size(path: Path, found: int | None, recorded: int) -> BadRun:
    if found is None:
        return BadRun("is missing", file=path, expected="a regular file")
    return BadRun(f"{found:,} bytes long", file=path, expected=f"{recorded:,}")
