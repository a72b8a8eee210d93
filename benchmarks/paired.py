"""Timing that holds on a noisy machine: alternatives in turn, and the ratio of each pair."""

from __future__ import annotations

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

    def line(self) -> str:
        """The figures as one line of a table."""
        spread = f"{self.lowest:.3f} to {self.highest:.3f}"
        return f"{self.name:<44} {self.seconds * 1e3:>10.1f} ms   x{self.median:.3f}   ({spread})"


def paired(alternatives: dict[str, Callable[[], object]], pairs: int) -> list[Ratio]:
    """Time every alternative `pairs` times in turn, after a warm-up; the first is the baseline."""
    for run in alternatives.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(pairs):
        for name, run in alternatives.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    baseline = times[next(iter(times))]
    found = []
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, baseline, strict=True)]
        found.append(
            Ratio(name, statistics.median(own), statistics.median(ratios), min(ratios), max(ratios))
        )
    return found
