"""What a rule reports: findings, thresholds, and commands that can be typed."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

from ditscope.core.axes import Branch
from ditscope.core.manifest import PROBE
from ditscope.errors import foreign
from ditscope.runs.reader import Run

Severity = Literal["error", "warning"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning")
"""Worst first. An error is a defect whatever the model; a warning may be how this model is."""


@dataclass(frozen=True)
class Threshold:
    """From where on a measurement is a finding, and where that number comes from."""

    side: Literal["at least", "at most"]
    value: float
    unit: str
    origin: str

    def words(self) -> str:
        """`at least 0.97 of log N`."""
        return f"{self.side} {self.value:.4g} {self.unit}".rstrip()

    def reached(self, values: NDArray[numpy.floating]) -> NDArray[numpy.bool_]:
        """Where a measurement is a finding; NaN never is."""
        return values >= self.value if self.side == "at least" else values <= self.value

    def excess(self, value: float) -> float:
        """How far beyond a value is: 1 at the threshold, 2 at twice, or half, of it."""
        if self.side == "at least":
            return value / self.value if self.value > 0 else math.inf
        return self.value / value if value > 0 else math.inf


@dataclass(frozen=True)
class Curve:
    """A measurement along the steps, mean over samples."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: coordinates, the evidence in numbers, and what to try.

    A coordinate that is None means all there are. `low` and `high` are the 95 % interval of
    `measured` over samples, None where there is none.
    """

    rule: str
    severity: Severity
    message: str
    measured: float
    threshold: Threshold
    advice: str
    command: str
    evidence: str  # the command that draws it
    layer: int | None = None
    heads: tuple[int, ...] | None = None
    steps: tuple[int, int] | None = None  # first and last
    branch: Branch | None = None
    low: float | None = None
    high: float | None = None
    curve: Curve | None = None

    def place(self) -> str:
        """Where it is, in words."""
        parts = []
        if self.layer is not None:
            parts.append(f"layer {self.layer}")
        if self.heads is not None:
            parts.append(f"head{'s' * (len(self.heads) > 1)} {', '.join(map(str, self.heads))}")
        if self.steps is not None:
            first, last = self.steps
            parts.append(f"step {first}" if first == last else f"steps {first} to {last}")
        if self.branch is not None:
            parts.append(self.branch)
        return ", ".join(parts) or "the whole run"

    def to_dict(self) -> dict[str, object]:
        """As plain data; a number that is not finite is None."""
        found = {**asdict(self), "measured": finite(self.measured), "place": self.place()}
        if self.curve is not None:
            found["curve"] = {
                "steps": list(self.curve.steps),
                "values": [finite(value) for value in self.curve.values],
            }
        return found


def finite(value: float) -> float | None:
    """The number, or None if it is NaN or infinite: JSON has no such numbers."""
    return value if math.isfinite(value) else None


def sample_again(run: Run, *changes: str) -> str:
    """The command that draws the same pictures again with these options added.

    Edits of attention are not repeated: a comment says that there were some.
    """
    manifest, guidance = run.manifest, run.manifest.guidance
    if manifest.sampler.name == PROBE:
        return _probe_again(run, *changes)
    words = ["ditscope", "sample", "--model", manifest.model.source]
    if manifest.model.weights is not None:
        words += ["--weights", manifest.model.weights]
    for label in manifest.labels:
        words += ["--class", label.name]
    words += ["--steps", str(manifest.sampler.steps), "--sampler", manifest.sampler.name]
    words += ["--cfg-scale", f"{guidance.scale:g}", "--seed", str(manifest.seed)]
    if guidance.channels is not None:
        words += ["--cfg-channels", str(guidance.channels)]
    if guidance.interval is not None:
        words += ["--cfg-interval", *(f"{level:g}" for level in guidance.interval)]
    words += ["--batch-size", str(max(len(batch) for batch in manifest.batches))]
    command = foreign(shlex.join([*words, "--attention-debug", *changes]), 1000)
    return command + ("  # without the edits of the run" if manifest.edits else "")


def _probe_again(run: Run, *changes: str) -> str:
    """The command that looks at the same pictures again, in the copies that the run keeps."""
    manifest, null = run.manifest, run.manifest.guidance.null_label
    words = ["ditscope", "probe", *(str(run.path / name) for name in run.layout.image_files)]
    words += ["--model", manifest.model.source]
    if manifest.model.weights is not None:
        words += ["--weights", manifest.model.weights]
    told = [label.name for label in manifest.labels if label.index != null]
    for name in told if len(told) == len(manifest.labels) else ():
        words += ["--class", name]
    words += ["--noise-levels", ",".join(f"{step.noise_level:.6g}" for step in manifest.steps)]
    words += ["--both-branches"] if len(run.layout.branches) == 2 else []
    words += ["--seed", str(manifest.seed)]
    words += ["--batch-size", str(max(len(batch) for batch in manifest.batches))]
    asked = list(changes)
    if "--qk-steps" in asked:  # a probe keeps Q and K of all its levels
        place = asked.index("--qk-steps")
        asked[place : place + 2] = ["--qk"]
    command = foreign(shlex.join([*words, *asked]), 1000)
    return command + ("  # without the edits of the run" if manifest.edits else "")


def draw(run: Run, kind: str, *options: str) -> str:
    """The command that draws a plot of the run."""
    words = ["ditscope", "plot", kind, str(run.path), "-o", f"{kind}.png", *options]
    return foreign(shlex.join(words), 1000)
