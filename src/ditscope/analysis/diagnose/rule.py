"""The base of every rule: one question, one measurement, one threshold, and the words.

A new rule is a file with a subclass of `Rule`, and its name in `engine.py`. What it has to say is
where the measurement is beyond the threshold (`suspects`); what healthy runs measure (`worst`), if
it can be calibrated; and its class attributes. Findings, intervals and commands are made here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy
import xarray
from numpy.typing import NDArray

from ditscope.analysis.confidence import bounds
from ditscope.analysis.diagnose.finding import (
    Curve,
    Finding,
    Severity,
    Threshold,
    draw,
    sample_again,
)
from ditscope.analysis.diagnose.seen import Seen
from ditscope.core.axes import Branch
from ditscope.errors import BadRequest

Array = NDArray[numpy.float64]


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A place where a measurement is beyond the threshold, and what to say of it.

    `measured` is one number per sample, or a single one. `changes` are options to add to the
    command that draws the pictures again; `picture` is a plot and its options.
    """

    message: str
    advice: str
    measured: Array | float
    layer: int | None = None
    heads: Sequence[int] | None = None
    steps: tuple[int, int] | None = None
    branch: Branch | None = "cond"
    changes: tuple[str, ...] = ()
    picture: tuple[str, ...] = ("heads",)
    severity: Severity | None = None  # None: that of the rule
    curve: Curve | None = None


class Rule(ABC):
    """A question that is asked of a run.

    `threshold` is the absolute one, None if only healthy runs of the same model can tell. A rule
    with `worst` is calibrated where there is a calibration: its threshold is then the most extreme
    healthy picture, and `margin` times as far; of what is looked for "at least", never below
    `floor`, however alike the healthy pictures were.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    measurement: ClassVar[str]
    threshold: ClassVar[Threshold | None] = None
    severity: ClassVar[Severity] = "error"
    side: ClassVar[str] = "at least"
    unit: ClassVar[str] = ""
    margin: ClassVar[float] = 1.25
    floor: ClassVar[float] = 0.0

    @abstractmethod
    def suspects(self, seen: Seen, threshold: Threshold) -> Iterable[Suspect]:
        """Where the run is beyond `threshold`, worst first. BadRequest if it cannot tell."""

    def worst(self, seen: Seen) -> Array | None:
        """The measurement of each picture (sample) where it is most extreme; None: no such one.

        Calibration asks it of healthy runs. BadRequest if the run cannot tell.
        """
        return None

    def check(self, seen: Seen) -> list[Finding]:
        """What the rule finds. Raises BadRequest if the run cannot answer the question."""
        threshold = self.bound(seen)
        return [self._finding(seen, threshold, each) for each in self.suspects(seen, threshold)]

    def bound(self, seen: Seen) -> Threshold:
        """The threshold that holds for a run: the calibrated one, else the absolute one.

        Raises BadRequest if there is neither.
        """
        healthy = None if seen.reference is None else seen.reference.healthy(self.name)
        if healthy is not None:
            return self._calibrated(*healthy)
        if self.threshold is not None:
            return self.threshold
        if seen.reference is not None:
            raise BadRequest(
                "the calibration says nothing of this rule",
                field="calibration",
                fix=f"Make it anew: {seen.calibrate}",
            )
        raise BadRequest(
            "only healthy runs of the same model can tell",
            field="calibration",
            fix=f"Record some: {seen.calibrate}",
        )

    def _calibrated(self, extreme: float, count: int) -> Threshold:
        """From `count` healthy pictures, the most extreme of which measured `extreme`."""
        above = self.side == "at least"
        value = max(extreme * self.margin, self.floor) if above else extreme / self.margin
        allowed = f"{self.margin:g} times as far is allowed"
        if above and value == self.floor:
            allowed = f"{self.floor:g} is allowed of any model"
        return Threshold(
            side="at least" if above else "at most",
            value=value,
            unit=self.unit,
            origin=f"calibrated: the {'largest' if above else 'least'} of {count} healthy pictures "
            f"of this model measured {extreme:.3g}, and {allowed}",
        )

    def _finding(self, seen: Seen, threshold: Threshold, found: Suspect) -> Finding:
        values = numpy.asarray(found.measured, dtype=float)
        low, high = bounds(values) if values.ndim else (numpy.nan, numpy.nan)
        known = bool(numpy.isfinite(low))
        return Finding(
            rule=self.name,
            severity=found.severity or self.severity,
            message=found.message,
            measured=float(values.mean()),
            threshold=threshold,
            advice=found.advice,
            command=sample_again(seen.run, *found.changes),
            evidence=draw(seen.run, *found.picture),
            layer=found.layer,
            heads=None if found.heads is None else tuple(int(head) for head in found.heads),
            steps=found.steps,
            branch=found.branch,
            low=float(low) if known else None,
            high=float(high) if known else None,
            curve=found.curve,
        )


@dataclass(frozen=True)
class Held:
    """Steps at which a measurement is beyond the threshold, of (sample, step) `values`."""

    steps: tuple[int, int]
    measured: Array  # per sample, mean over these steps
    curve: Curve


def held(values: xarray.DataArray, threshold: Threshold, lasting: float = 0.0) -> Held | None:
    """Where the mean over samples of `values` (step, sample) reaches the threshold.

    None if that is nowhere, or at less than the share `lasting` of the steps: one odd step is no
    defect.
    """
    data = values.transpose("sample", "step").values
    holds = threshold.reached(data.mean(0))
    if not holds.any() or holds.mean() < lasting:
        return None
    return Held(
        step_range(values["step"].values, holds),
        data[:, holds].mean(1),
        curve_of(values["step"].values, data.mean(0)),
    )


def step_range(steps: NDArray, holds: NDArray[numpy.bool_]) -> tuple[int, int]:
    """First and last step at which something holds."""
    found = numpy.asarray(steps)[holds]
    return int(found[0]), int(found[-1])


def curve_of(steps: NDArray, values: NDArray) -> Curve:
    """A curve over steps, for the card of a finding."""
    return Curve(tuple(int(step) for step in steps), tuple(float(value) for value in values))
