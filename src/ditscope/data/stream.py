"""Pictures from any `datasets` source, read as a stream, in an order that is a function of numbers.

The shards of an epoch come in an order of (seed, epoch), one after the other, epoch after epoch
without end. Every `block` records of that sequence are shuffled among themselves. So picture i is
a pure function of the data and (seed, i), wherever reading begins; a `Place` that was noted only
saves reading what lies before it.

Shapes: B rows of a batch; h, w pixels of a picture.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditscope.data.order import mirrored, shuffled
from ditscope.data.pictures import DECODERS, Labelled, UnreadablePicture, read_picture, too_many_bad
from ditscope.data.records import RecordSource, picture_bytes
from ditscope.errors import BadDataset, foreign

KEPT_BLOCKS = 2
"""A batch may lie across the border of two."""


class Place(NamedTuple):
    """Where a record stands: before it are `offset` records of the `turn`-th shard of an epoch."""

    epoch: int = 0
    turn: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Record:
    """One example as it was read; the picture is not decoded yet."""

    name: str
    picture: object
    label: object


class PictureStream:
    """Pictures 0, 1, 2, ... without end; as many records are in memory as two blocks have.

    Each picture is made as by `PictureFolder`. Records whose picture or label is none are listed
    in `bad`, and the next one of the block takes their place. A shard on this machine that breaks
    off counts as one of them; of a remote one that is an error, as it may be the connection's.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        size: tuple[int, int],
        seed: int = 0,
        flip: bool = False,
        block: int = 1024,
        max_bad: int = 100,
    ) -> None:
        """Pictures of `size` (h, w) pixels; `block` records are shuffled among themselves."""
        self.source, self.size = source, size
        self.seed, self.flip, self.block, self.max_bad = seed, flip, block, max_bad
        count = source.dataset.num_shards
        self.bad = {f"shard {n} of {count}": why for n, why in source.cut_short().items()}
        self._starts = {0: Place()}  # of blocks
        self._blocks: OrderedDict[int, list[Record]] = OrderedDict()
        self._coming: Iterator[tuple[Record, Place]] = iter(())
        self._next = -1  # the block that `_coming` stands before

    def batch(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (B, h, w, 3) uint8 RGB and labels (B,) int64 of pictures `indices`.

        Raises:
            BadDataset: more than `max_bad` records cannot be read, or all of a block, or a remote
                source breaks off.
        """
        numbers = sorted({index // self.block for index in indices})
        blocks = {number: self._records(number) for number in numbers}
        with ThreadPoolExecutor(max_workers=DECODERS) as decoders:
            found = list(decoders.map(lambda index: self._picture(index, blocks), indices))
        if len(self.bad) > self.max_bad or None in found:
            raise too_many_bad(self.bad, self.max_bad, self.source.place)
        whole = [each for each in found if each is not None]
        labels = np.array([label for _, label in whole], np.int64)
        return np.stack([image for image, _ in whole]), labels

    def start_of(self, index: int) -> tuple[int, Place]:
        """The last block up to picture `index` whose place is known, and that place."""
        blocks = list(self._starts)  # at once: another thread may read on
        known = max(block for block in blocks if block <= index // self.block)
        return known, self._starts[known]

    def starts_at(self, block: int, place: Place) -> None:
        """Believe that a block begins there: an earlier `start_of` said so."""
        self._starts[block] = place

    def _picture(self, index: int, blocks: Mapping[int, list[Record]]) -> Labelled | None:
        number, at = divmod(index, self.block)
        records = blocks[number]
        order = shuffled(self.seed, number, len(records))
        for step in range(len(records)):
            record = records[order[(at + step) % len(records)]]
            if record.name in self.bad:
                continue
            try:
                image, label = self._decoded(record)
            except UnreadablePicture as reason:
                self.bad[record.name] = str(reason)
                if len(self.bad) > self.max_bad:
                    break
                continue
            turned = self.flip and mirrored(self.seed, index)
            return (image[:, ::-1] if turned else image), label
        return None

    def _decoded(self, record: Record) -> Labelled:
        label = self.source.columns.label_of(record.label)
        content = picture_bytes(record.picture)
        return read_picture(BytesIO(content), self.size), label

    def _records(self, number: int) -> list[Record]:
        """The records of a block, in the order they are read."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        known, place = self.start_of(number * self.block)
        if not known <= self._next <= number:
            self._coming, self._next = self._read(place), known
        while True:
            records = []
            for _ in range(self.block):
                record, place = next(self._coming)
                records.append(record)
            self._next += 1
            self._starts[self._next] = place
            if self._next > number:
                break
        self._blocks[number] = records
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return records

    def _read(self, place: Place) -> Iterator[tuple[Record, Place]]:
        """Records from a place on, without end, each with the place of the next one."""
        count = self.source.dataset.num_shards
        epoch, turn, offset = place
        while True:
            order = shuffled(self.seed, epoch, count).tolist()
            seen = offset + turn
            while turn < count:
                for record in self._shard(order[turn], offset):
                    offset, seen = offset + 1, seen + 1
                    yield record, Place(epoch, turn, offset)
                turn, offset = turn + 1, 0
            if not seen:
                raise BadDataset("holds no records", file=self.source.place)
            epoch, turn = epoch + 1, 0

    def _shard(self, number: int, offset: int) -> Iterator[Record]:
        """The records of a shard but the first `offset`, up to where it ends or breaks off."""
        dataset, columns = self.source.dataset, self.source.columns
        count = dataset.num_shards
        shard = dataset.shard(count, number)
        at = offset
        try:
            for example in shard.skip(offset) if offset else shard:
                name = f"record {at} of shard {number}"
                at += 1
                yield Record(name, example.get(columns.image), example.get(columns.label))
        except Exception as reason:  # readers of all formats meet broken data with any error
            name = f"shard {number} of {count}"
            why = f"breaks off after {at} records: {type(reason).__name__}: {foreign(reason)}"
            if self.source.remote:
                raise BadDataset(f"{name} {why}", file=self.source.place) from None
            self.bad[name] = why
