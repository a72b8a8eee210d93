"""The log of a training: JSON lines, of which a resumed training repeats none.

A line is a `Progress`, or a note with the fields `step`, `event` and what belongs to it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ditscope.core.atomic import new_file
from ditscope.train.tensorboard import Curves


@dataclass(frozen=True)
class Progress:
    """What the log says every `log_every` steps."""

    step: int
    pictures: int
    loss: float | None  # mean since the last report; None if every step was skipped
    gradient_norm: float | None  # of the last step, before clipping; None if it was skipped
    pictures_per_second: float
    stage: str  # "coarse" or "fine"
    learning_rate: float  # of the last step, AdamW's
    peak_memory_gib: float  # most main memory that the process has had so far
    peak_gpu_gib: float | None = None  # most memory of tensors on its GPU so far; None: no GPU


class Journal:
    """Collects the losses of the steps since the last report, and writes lines.

    A line that cannot be written (a full disk) is lost, and the training goes on: what counts is
    in the checkpoints.
    """

    def __init__(
        self,
        path: Path | None,
        step: int,
        losses: tuple[float, ...],
        curves: Curves | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Go on at `step` with the losses since the last report; later lines are dropped.

        Without a path nothing is written: one of several processes keeps the log. Every line goes
        to `curves` too. Lines tell the memory of a GPU if that is the `device`.

        Raises ResourceError if the file cannot be written.
        """
        self._curves, self._device = curves, device
        self.losses = list(losses)
        self._pictures, self._since = 0, time.perf_counter()
        self._log: int | None = None
        if path is not None:
            _cut(path, step)
            self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def close(self) -> None:
        """Write no more."""
        if self._curves is not None:
            self._curves.close()
        if self._log is not None:
            os.close(self._log)

    def add(self, loss: float, pictures: int) -> None:
        """A step was taken."""
        self.losses.append(loss)
        self._pictures += pictures

    def report(
        self,
        step: int,
        pictures: int,
        *,
        gradient_norm: float | None,
        stage: str,
        learning_rate: float,
    ) -> Progress:
        """Write a line about the steps since the last one."""
        line = Progress(
            step=step,
            pictures=pictures,
            loss=sum(self.losses) / len(self.losses) if self.losses else None,
            gradient_norm=gradient_norm,
            pictures_per_second=self._pictures / (time.perf_counter() - self._since),
            stage=stage,
            learning_rate=learning_rate,
            peak_memory_gib=round(peak_memory() / 2**30, 3),
            peak_gpu_gib=self._peak_gpu_gib(),
        )
        self._write(asdict(line))
        self.losses, self._pictures, self._since = [], 0, time.perf_counter()
        return line

    def note(self, step: int, event: str, **facts: object) -> None:
        """Write a line about something that happened."""
        self._write({"step": step, "event": event, **facts})

    def _peak_gpu_gib(self) -> float | None:
        if self._device is None or self._device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self._device) / 2**30, 3)

    def _write(self, line: dict[str, object]) -> None:
        if self._curves is not None:
            self._curves.add(line)
        if self._log is None:
            return
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            os.write(self._log, data)
        except OSError:
            return


def peak_memory() -> int:
    """Bytes of main memory that this process has had at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _cut(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a line cut short by a kill goes too."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().splitlines() if _step_of(line) <= step]
    with new_file(path) as beside:
        beside.write_bytes(b"".join(line + b"\n" for line in kept))


def _step_of(line: bytes) -> float:
    try:
        tree = json.loads(line)
        return float(tree["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return float("inf")
