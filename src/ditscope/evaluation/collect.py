"""One pass over pictures: features, moments, classes named, and a digest of what was seen.

Shapes: B pictures of one batch, D features, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditscope.errors import BadRequest
from ditscope.evaluation.accuracy import Confusion
from ditscope.evaluation.extractors import Extractor
from ditscope.evaluation.groups import grouped
from ditscope.evaluation.moments import GroupedMoments
from ditscope.evaluation.sources import Progress, Source


@dataclass(frozen=True)
class Collected:
    """What one pass leaves."""

    moments: GroupedMoments
    count: int
    features: NDArray[np.float32]  # of the first pictures only
    sha256: str  # of all pixels, in order
    confusion: Confusion | None  # None: the pictures have no classes, or the network has none
    unknown: tuple[str, ...]  # classes that pictures were drawn for and the network cannot name


def collect(
    source: Source,
    extract: Extractor,
    *,
    keep: int,
    progress: Progress,
    width: int | None = None,
) -> Collected:
    """Put all pictures of `source` through `extract`; keep the features of the first `keep`.

    Raises BadRequest at the first batch if its features are not `width`, and what the source and
    the extractor raise.
    """
    naming = Naming(source.class_names, extract.protocol.class_names)
    group_of, groups = grouped(source.count, source.labels)
    digest, count = hashlib.sha256(), 0
    moments: GroupedMoments | None = None
    kept: list[NDArray[np.float32]] = []
    for pictures in source.batches(progress):
        here = slice(count, count + len(pictures))
        for picture in pictures:
            digest.update(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
        features, scores = extract(pictures)
        if moments is None:
            if width not in (None, features.shape[1]):
                raise BadRequest(
                    f"{features.shape[1]} features where the reference has {width}",
                    field="reference",
                )
            moments = GroupedMoments(features.shape[1], groups)
        if count < keep:
            kept.append(features[: keep - count])
        moments.add(features, group_of[here])
        if scores is not None and source.labels is not None:
            naming.add(source.labels[here], scores)
        count += len(pictures)
    if moments is None:
        raise BadRequest("there are no pictures", field="samples", expected="at least one")
    features = np.concatenate(kept) if kept else np.zeros((0, 0), np.float32)
    return Collected(moments, count, features, digest.hexdigest(), naming.confusion, naming.unknown)


class Naming:
    """Counts which class a network names for pictures of which class; classes match by name.

    A network whose scores have no names is taken to count classes as the source does.
    """

    def __init__(self, wanted: tuple[str, ...], known: tuple[str, ...] | None) -> None:
        self._names = wanted if known is None else known
        self.unknown = tuple(name for name in wanted if name not in self._names)
        self._positions = list(range(len(wanted)))
        if known is not None and not self.unknown:
            self._positions = [known.index(name) for name in wanted]
        self.confusion: Confusion | None = None

    def add(self, labels: Sequence[int], scores: NDArray[np.float32]) -> None:
        """Labels (B,) as the source counts them, scores (B, K). Raises BadRequest."""
        if self.unknown or not self._names:
            return
        if scores.shape[1] != len(self._names):
            raise BadRequest(
                f"scores of {scores.shape[1]} classes",
                field="features",
                expected=f"{len(self._names)}, or an attribute `class_names` that says which",
            )
        if self.confusion is None:
            self.confusion = Confusion(self._names)
        drawn_for = np.array([self._positions[label] for label in labels], np.int64)
        self.confusion.add(drawn_for, scores)
