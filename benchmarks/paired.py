"""Timing that holds on a noisy machine: alternatives in turn, and the ratio of each pair.

The time on the clock is what a user waits for. The time of the processors, of all threads together,
says the same where nothing else runs, and hardly moves where something does.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """How much longer `name` takes than the baseline: the median over pairs, and the extremes."""

    name: str
    seconds: float  # median of its own times
    median: float
    lowest: float
    highest: float
    processor: float  # median of the ratios of processor time

    def line(self) -> str:
        """The figures as one line of a table."""
        spread = f"{self.lowest:.3f} to {self.highest:.3f}"
        return (
            f"{self.name:<44} {self.seconds * 1e3:>10.1f} ms   x{self.median:.3f}   ({spread})"
            f"   processor x{self.processor:.3f}"
        )


def paired(alternatives: dict[str, Callable[[], object]], pairs: int) -> list[Ratio]:
    """Time every alternative `pairs` times in turn, after a warm-up; the first is the baseline."""
    for run in alternatives.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in alternatives}
    for _ in range(pairs):
        for name, run in alternatives.items():
            started = time.perf_counter(), _processor_seconds()
            run()
            ended = time.perf_counter(), _processor_seconds()
            times[name].append((ended[0] - started[0], ended[1] - started[1]))
    baseline = times[next(iter(times))]
    return [_ratio(name, own, baseline) for name, own in times.items()]


def _ratio(name: str, own: list[tuple[float, float]], baseline: list[tuple[float, float]]) -> Ratio:
    clock = [a / b for (a, _), (b, _) in zip(own, baseline, strict=True)]
    processor = [a / b for (_, a), (_, b) in zip(own, baseline, strict=True)]
    return Ratio(
        name,
        statistics.median(seconds for seconds, _ in own),
        statistics.median(clock),
        min(clock),
        max(clock),
        statistics.median(processor),
    )


def _processor_seconds() -> float:
    """What this process and the children it has waited for have used, all threads together."""
    return sum(os.times()[:4])
