"""The numbers of the log as curves for TensorBoard, by option."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from ditscope.errors import missing_package

FOLDER = "tensorboard"


class Curves:
    """Writes the lines of a log as scalars; those of a resumed training go on where it stood."""

    def __init__(self, folder: Path, step: int) -> None:
        """Write under `folder`, from the step after `step` on; later points are dropped.

        Raises ResourceError if the package `tensorboard` is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as reason:
            raise missing_package(reason, "the setting tensorboard") from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, line: Mapping[str, object]) -> None:
        """The numbers of a line, at its step: those of a report, or of a look at the attention.

        What cannot be written (a full disk) is lost: they are in the log too.
        """
        step = line["step"]
        if line.get("event") == "attention":
            layers = line["layers"]
            assert isinstance(layers, list)
            found = {
                f"attention {name}/{layer['site']}": value
                for layer in layers
                for name, value in layer.items()
                if name != "site"
            }
        elif "event" not in line:
            found = {f"training/{name}": value for name, value in line.items() if name != "step"}
        else:
            return
        with contextlib.suppress(OSError):
            for name, value in found.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Write no more."""
        with contextlib.suppress(OSError):
            self._writer.close()
