"""Batches of a run that are drawn apart: each a run of its own in `NAME.parts` until all are there.

    NAME.parts/00000/      the run of batch 0: its samples, all of its steps
    NAME.parts/00001/      ...

A part is whole or is drawn again; a whole one can be opened like any run.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ditscope.core.manifest import RunManifest
from ditscope.errors import BadRun, ResourceError, foreign, listed
from ditscope.runs.merge import first_difference, part_of
from ditscope.runs.reader import Run, open_run
from ditscope.runs.target import parts_folder

_ENTRY = re.compile(r"(\d{5})(?:\.lock|\.(?:tmp|old)-.*)?")
"""A part, or what a crash leaves beside one."""


class Parts:
    """The parts of the run of `manifest` that will be `target`."""

    def __init__(self, target: Path, manifest: RunManifest) -> None:
        self.folder = parts_folder(target)
        self.manifest = manifest

    def place(self, batch: int) -> Path:
        """The folder of one batch."""
        return self.folder / f"{batch:05d}"

    def manifest_of(self, batch: int) -> RunManifest:
        """What the run of one batch is to record."""
        return part_of(self.manifest, self.manifest.batches[batch])

    def prepare(self, *, overwrite: bool) -> list[int]:
        """Make the folder if there is none; the batches that are not drawn yet.

        Raises:
            ResourceError: the folder holds anything else, or parts of another run and `overwrite`
                is false; with it they are removed.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            entries = sorted(entry.name for entry in self.folder.iterdir())
        except OSError as reason:
            raise ResourceError(f"cannot be made: {reason.strerror}", file=self.folder) from None
        strange = [name for name in entries if not _ENTRY.fullmatch(name)]
        if strange:
            raise ResourceError(
                f"holds other files: {listed(strange)}",
                file=self.folder,
                fix="choose another name for the run",
            )
        batches = sorted({int(name[:5]) for name in entries})
        difference = self._difference(batches)
        if difference and overwrite:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            batches = []
        elif difference:
            raise ResourceError(
                f"holds a part of another run: its {difference} is not the same",
                file=self.folder,
                fix="repeat the command that was begun, choose another name, or overwrite it",
            )
        whole = {batch for batch in batches if self._found(batch, complete=True)}
        return [batch for batch in range(len(self.manifest.batches)) if batch not in whole]

    def runs(self) -> list[Run]:
        """Every part, opened. Raises BadRun if one is missing or damaged."""
        return [open_run(self.place(batch)) for batch in range(len(self.manifest.batches))]

    def remove(self) -> None:
        """Remove the folder: the whole run holds everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _difference(self, batches: list[int]) -> str | None:
        """In what the parts on disk are those of another run."""
        for batch in batches:
            if batch >= len(self.manifest.batches):
                return "number of samples"
            found = self._found(batch, complete=False)
            if found and (field := first_difference(found.manifest, self.manifest_of(batch))):
                return field
        return None

    def _found(self, batch: int, *, complete: bool) -> Run | None:
        """The part on disk, if one can be opened; with `complete`, if it is whole."""
        try:
            run = open_run(self.place(batch), allow_partial=not complete)
        except BadRun:
            return None
        return run if not complete or (run.complete and not run.manifest.lost) else None


def sample_text(samples: list[int]) -> str:
    """Indices of samples in words: `samples 0 to 7, 16`."""
    spans: list[list[int]] = []
    for sample in samples:
        if spans and sample == spans[-1][1] + 1:
            spans[-1][1] = sample
        else:
            spans.append([sample, sample])
    words = (str(low) if low == high else f"{low} to {high}" for low, high in spans)
    return f"samples {foreign(', '.join(words))}"
