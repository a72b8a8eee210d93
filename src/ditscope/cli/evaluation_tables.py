"""An evaluation as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ditscope.cli.console import print_table, results
from ditscope.errors import foreign

if TYPE_CHECKING:
    from ditscope.evaluation.evaluate import Evaluation

CLASSES_SHOWN = 12
MISTAKES_SHOWN = 3


def show(found: Evaluation) -> None:
    """What was measured, of what; then the classes that went worst."""
    tree: Any = found.to_dict()
    print_table(("measure", "value", "95 % interval", ""), measure_rows(tree["measures"]))
    accuracy = tree["measures"]["accuracy"]
    if accuracy is not None:
        results().print()
        print_table(
            ("worst classes", "right", "of", "95 % interval", "confidence", "taken for"),
            class_rows(accuracy),
        )
        rest = len(accuracy["classes"]) - CLASSES_SHOWN
        if rest > 0:
            results().print(f"and {rest} more classes, which went as well or better")
    results().print()
    for name in ("samples", "reference", "features"):
        results().print(f"{name:<10} {described(tree[name])}")
    for note in found.notes:
        results().print(f"note       {note}")


def measure_rows(measures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for every number that could be had."""
    rows: list[tuple[str, ...]] = []
    accuracy, frechet = measures["accuracy"], measures["frechet"]
    shares = measures["precision_recall"]
    if accuracy is not None:
        told = f"{accuracy['correct']} of {accuracy['count']} pictures, mean confidence "
        told += f"{accuracy['confidence']:.3f}"
        rows.append(
            ("class accuracy", f"{accuracy['share']:.1%}", percent_interval(accuracy), told)
        )
    if frechet is not None:
        told = f"{frechet['samples']} samples, {frechet['features']} features"
        rows.append(("Frechet distance", f"{frechet['distance']:.4g}", "", told))
    if frechet is not None and frechet["unbiased"] is not None:
        interval = f"{frechet['low']:.4g} to {frechet['high']:.4g}"
        told = "of as many samples as one likes (jackknife)"
        rows.append(("  unbiased", f"{frechet['unbiased']:.4g}", interval, told))
    if shares is not None:
        told = f"{shares['count']} pictures each, {shares['neighbours']} neighbours"
        rows.append(("precision", f"{shares['precision']:.3f}", "", told))
        rows.append(("recall", f"{shares['recall']:.3f}", "", ""))
    return rows


def class_rows(accuracy: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """A row for each of the worst classes."""
    rows = []
    for row in accuracy["classes"][:CLASSES_SHOWN]:
        mistakes = list(row["mistaken_for"].items())[:MISTAKES_SHOWN]
        taken_for = ", ".join(f"{name} {count}" for name, count in mistakes)
        share = (row["correct"], row["count"], percent_interval(row))
        rows.append((row["name"], *share, f"{row['confidence']:.3f}", taken_for))
    return rows


def percent_interval(share: Mapping[str, Any]) -> str:
    """The interval of a share."""
    return f"{share['low']:.1%} to {share['high']:.1%}"


def described(choices: Mapping[str, Any]) -> str:
    """Where pictures or features come from, in one line; the file has all of it."""
    source = choices.get("source")
    if isinstance(source, Mapping):  # of a reference
        choices = {**source, **choices}
    parts = [
        str(choices[name]) for name in ("kind", "name", "model", "folder") if choices.get(name)
    ]
    sampler, guidance = choices.get("sampler"), choices.get("guidance")
    if sampler and guidance:
        parts.append(f"{sampler['name']} {sampler['steps']} steps, guidance {guidance['scale']:g}")
    for name in ("arithmetic", "features", "seed", "count"):
        if isinstance(choices.get(name), int | str):
            parts.append(f"{name} {choices[name]}")
    if choices.get("sha256"):
        parts.append(f"sha256 {choices['sha256'][:12]}")
    return foreign(", ".join(parts), limit=400)
