"""`evaluate`: samples against data, in the features of one network.

found = ditscope.evaluate("emoji", num_samples=640, steps=10, sampler="unipc")
found.accuracy, found.frechet, found.precision_recall
found.to_dict()             # the numbers, and beside them every choice they depend on
"""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ditscope.core.atomic import new_file
from ditscope.errors import listed
from ditscope.evaluation.accuracy import Accuracy, wilson
from ditscope.evaluation.collect import Collected, collect
from ditscope.evaluation.extractors import Extractor, extractor
from ditscope.evaluation.frechet import FrechetEstimate, estimate
from ditscope.evaluation.manifold import NEIGHBOURS, PrecisionRecall, precision_recall
from ditscope.evaluation.reference import KEPT, Reference, reference_of
from ditscope.evaluation.sources import Report, Source, source_of
from ditscope.pipeline import Pipeline
from ditscope.runs.reader import Run
from ditscope.version import __version__

FORMAT = "ditscope-evaluation"


@dataclass(frozen=True)
class Evaluation:
    """What was found. A measure that could not be taken is None, and `notes` say why."""

    samples: dict[str, object]
    reference: dict[str, object]
    features: dict[str, object]
    accuracy: Accuracy | None
    frechet: FrechetEstimate | None
    precision_recall: PrecisionRecall | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The numbers and all choices as plain data."""
        return {
            "format": FORMAT,
            "version": 1,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "ditscope": __version__,
            "measures": {
                "accuracy": None if self.accuracy is None else accuracy_facts(self.accuracy),
                "frechet": None if self.frechet is None else frechet_facts(self.frechet),
                "precision_recall": self.precision_recall and asdict(self.precision_recall),
            },
            "samples": self.samples,
            "reference": self.reference,
            "features": self.features,
            "notes": list(self.notes),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON, whole or not at all. Raises ResourceError."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        with new_file(Path(path)) as beside:
            beside.write_text(text + "\n", encoding="utf-8")


def evaluate(
    samples: str | os.PathLike[str] | Source | Run | Pipeline,
    *,
    features: str | Extractor = "emoji",
    reference: str | os.PathLike[str] | Reference = "emoji",
    num_samples: int | None = None,
    classes: Sequence[str | int] = (),
    neighbours: int = NEIGHBOURS,
    report: Report | None = None,
    **settings: object,
) -> Evaluation:
    """Class accuracy, Frechet distance, precision and recall of `samples` against `reference`.

    Args:
        samples: a model, which draws them, a run, a folder of pictures, or "scenes"; see
            `ditscope.evaluation.sources.source_of`.
        features: "emoji" (the bundled classifier), a TorchScript or ONNX file, a Python object as
            `module:name`; see `ditscope.evaluation.extractors.extractor`.
        reference: "emoji", a folder, a run or a file of statistics; see
            `ditscope.evaluation.reference.reference_of`.
        num_samples: None: all there are; of a model ten a class.
        classes: what a model draws; empty: all its classes, in turn.
        neighbours: k of precision and recall.
        report: called as it goes on.
        settings: how a model draws: steps, sampler, cfg_scale, seed, ... as of `ditscope.sample`.

    Raises:
        BadRequest: an argument that is unknown or out of range.
        BadRun, BadCheckpoint, BadDataset: something that cannot be read.
        ResourceError: a package or device is missing.
        NumericalError: NaN or Inf.
    """
    extract = features if isinstance(features, Extractor) else extractor(features)
    source = source_of(samples, num_samples, classes=classes, settings=settings)
    given = reference
    if not isinstance(given, Reference):
        given = reference_of(given, extract, class_names=source.class_names, report=report)

    def progress(done: float) -> None:
        if report is not None:
            report("samples", done, source.count)

    found = collect(source, extract, keep=KEPT, progress=progress, width=len(given.mean))
    notes = [*source.notes, *_shown_otherwise(given, source)]
    frechet = _frechet(given, found, notes)
    accuracy = _accuracy(found, notes)
    shares = _shares(given, found, neighbours, notes)
    if shares is not None and source.labels is not None:
        notes += _reaching(source.labels, neighbours)
    protocol = extract.protocol.model_copy(update={"features": found.features.shape[1]})
    return Evaluation(
        samples={**source.protocol, "count": found.count, "sha256": found.sha256},
        reference=given.facts.model_dump(mode="json"),
        features=protocol.model_dump(mode="json"),
        accuracy=accuracy,
        frechet=frechet,
        precision_recall=shares,
        notes=tuple(notes),
    )


def _shown_otherwise(given: Reference, source: Source) -> list[str]:
    ours, theirs = set(source.class_names), set(given.facts.class_names)
    if not ours or not theirs or ours == theirs:
        return []
    return [
        f"the reference shows {len(theirs)} classes, the samples {len(ours)}, of which "
        f"{len(ours & theirs)} are the same: the distance and recall count that as well"
    ]


def _frechet(given: Reference, found: Collected, notes: list[str]) -> FrechetEstimate | None:
    count, width = found.count, len(given.mean)
    if count < 2:
        notes.append("no Frechet distance: it takes two pictures or more")
        return None
    if count <= width:
        notes.append(
            f"{count} samples for {width} features: the Frechet distance is biased upwards a lot; "
            "compare it with distances of as many samples only"
        )
    measured = estimate(given.mean, given.covariance, found.moments)
    if measured.unbiased is None:
        notes.append(
            "no unbiased Frechet distance: it takes twenty samples or more, and of classes that "
            "were drawn in turn each equally often (best 10 times, or a multiple of that)"
        )
    return measured


def _accuracy(found: Collected, notes: list[str]) -> Accuracy | None:
    if found.confusion is not None:
        return found.confusion.accuracy()
    why = "the pictures or the features have no classes"
    if found.unknown:
        why = f"the network cannot name {listed(found.unknown)}"
    notes.append(f"no class accuracy: {why}")
    return None


def _shares(
    given: Reference, found: Collected, neighbours: int, notes: list[str]
) -> PrecisionRecall | None:
    data, samples = given.features, found.features
    if min(len(data), len(samples)) > neighbours:
        return precision_recall(data, samples, neighbours)
    notes.append(
        f"no precision and recall: {neighbours} neighbours, and feature vectors of {len(data)} "
        f"pictures of the reference and {len(samples)} samples"
    )
    return None


def _reaching(labels: Sequence[int], neighbours: int) -> list[str]:
    fewest = min(Counter(labels).values())
    if fewest > neighbours:
        return []
    return [
        f"precision and recall say little: a class has {fewest} samples, so that {neighbours} "
        "neighbours reach into other classes"
    ]


def accuracy_facts(found: Accuracy) -> dict[str, object]:
    """Class accuracy as plain data, with its intervals."""
    return {
        **share_facts(found.correct, found.count),
        "confidence": found.confidence,
        "classes": [
            {
                "name": row.name,
                **share_facts(row.correct, row.count),
                "confidence": row.confidence,
                "mistaken_for": row.mistaken_for,
            }
            for row in found.classes
        ],
    }


def share_facts(correct: int, count: int) -> dict[str, object]:
    """A share with Wilson's 95 % interval."""
    low, high = wilson(correct, count)
    return {
        "correct": correct,
        "count": count,
        "share": correct / count,
        "low": low,
        "high": high,
    }


def frechet_facts(found: FrechetEstimate) -> dict[str, object]:
    """The distance as plain data, with a 95 % interval of the unbiased one."""
    low, high = found.interval or (None, None)
    return {**asdict(found), "low": low, "high": high}
