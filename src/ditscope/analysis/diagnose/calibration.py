"""What healthy runs of one model look like, as a file beside its weights: `calibration.json`.

For every statistic and measure: mean and standard deviation over pictures, for each layer and head
at a fixed row of noise levels, so that runs with any number of steps can be held against it. For
every rule that can be calibrated: how far healthy pictures went. For every class: how it differs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from ditscope.core import strict_json
from ditscope.core.atomic import new_file
from ditscope.core.bundled import BUNDLED, bundled_folder
from ditscope.core.manifest import Record
from ditscope.errors import BadConfig

CALIBRATION_FILE = "calibration.json"
MAX_BYTES = 256_000_000

Numbers = tuple[float | None, ...]
"""A flat array; None where there is no number."""


class Spread(Record):
    """Mean and standard deviation over healthy pictures, flat, of an array of the named axes."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: Numbers
    sd: Numbers


class Extremes(Record):
    """How a rule measured healthy pictures, each at its worst place."""

    least: float
    median: float
    greatest: float
    count: int = Field(ge=1)


class ClassReference(Record):
    """How the pictures of a class differ from those of all, in standard deviations."""

    mean: Numbers
    count: int = Field(ge=1)


class CalibratedSettings(Record):
    """What was drawn, as the least and the greatest value of each setting."""

    steps: tuple[int, int]
    cfg_scale: tuple[float, float]
    samplers: tuple[str, ...]
    pictures: int


class Calibration(Record):
    """The content of the file."""

    format: Literal["ditscope-calibration"] = "ditscope-calibration"
    version: Literal[1] = 1
    created: str  # ISO 8601, UTC
    model: str
    weights: dict[str, str]  # SHA-256 of the weights, by the number type they compute in
    settings: CalibratedSettings
    levels: tuple[float, ...] = Field(min_length=2)  # noise levels, rising
    metrics: tuple[str, ...]
    statistics: dict[str, Spread]  # by branch: (metric, level, layer, head)
    objects: dict[str, Spread] = Field(default_factory=dict)  # by measure: (level, layer)
    classes: dict[str, ClassReference] = Field(default_factory=dict)  # by name: the signature
    class_sd: Numbers = ()  # of a signature within a class
    rules: dict[str, Extremes] = Field(default_factory=dict)


def calibration_path(source: str, weights: str | None = None) -> Path:
    """Where the calibration of a model is: in its folder, or beside its file of weights.

    Args:
        source: A bundled name or a path, as in the manifest of a run.
        weights: Other weights that were put into it.
    """
    if weights is None and source in BUNDLED:
        return bundled_folder(source) / CALIBRATION_FILE
    place = Path(weights or source)
    if place.is_dir():
        return place / CALIBRATION_FILE
    return place.with_name(f"{place.stem}.{CALIBRATION_FILE}")


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """The calibration in a file.

    Raises:
        BadConfig: it is missing, damaged, of another format, or its arrays do not fit their shape.
    """
    tree = strict_json.read(path, error=BadConfig, max_bytes=MAX_BYTES)
    if tree.get("format") != "ditscope-calibration":
        raise BadConfig(
            "is no calibration", file=path, field="format", expected="ditscope-calibration"
        )
    found = strict_json.validated(Calibration, tree, file=path, error=BadConfig)
    _check(found, path)
    return found


def write_calibration(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """Write the file, whole or not at all. Raises ResourceError."""
    text = json.dumps(calibration.model_dump(mode="json"), separators=(",", ":"), allow_nan=False)
    with new_file(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def _check(found: Calibration, path: str | os.PathLike[str]) -> None:
    """Raise BadConfig where the parts contradict each other."""
    if list(found.levels) != sorted(set(found.levels)):
        raise BadConfig("do not rise", file=path, field="levels")
    spreads = {f"statistics.{name}": each for name, each in found.statistics.items()}
    spreads |= {f"objects.{name}": each for name, each in found.objects.items()}
    heads = next((each.shape[2:] for each in found.statistics.values()), ())
    for field, each in spreads.items():
        size = 1
        for length in each.shape:
            size *= length
        expected = (
            (len(found.metrics), len(found.levels), *heads)
            if field.startswith("statistics")
            else (len(found.levels), *heads[:1])
        )
        if each.shape != expected or not size == len(each.mean) == len(each.sd):
            raise BadConfig(
                f"{len(each.mean)} means and {len(each.sd)} deviations of shape {each.shape}",
                file=path,
                field=field,
                expected=f"shape {expected}",
            )
    for name, each in found.classes.items():
        if len(each.mean) != len(found.class_sd):
            raise BadConfig(
                f"{len(each.mean)} numbers",
                file=path,
                field=f"classes.{name}",
                expected=f"{len(found.class_sd)}, as in class_sd",
            )
