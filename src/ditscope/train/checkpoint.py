"""Checkpoints that are whole or absent, and the newest one that verifies.

ckpt-0000500/
  model.safetensors  ema.safetensors  optimizer.safetensors
  state.json          step and pictures seen
  manifest.json       size and sha256 of every file, written last
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ditscope.core.atomic import file_sha256, new_folder
from ditscope.core.strict_json import parse
from ditscope.errors import BadCheckpoint, DitscopeError
from ditscope.model.weights import load_weights, save_weights

PARTS = ("model", "ema", "optimizer")
NAME = re.compile(r"ckpt-(\d{7,})")


@dataclass(frozen=True)
class Checkpoint:
    """All that a training is at the end of step `step - 1`."""

    step: int
    pictures: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write a checkpoint under `folder`, then drop all but the newest `keep`.

    Raises ResourceError if it cannot be written; the older ones are untouched then.
    """
    target = folder / f"ckpt-{checkpoint.step:07d}"
    with new_folder(target, replaceable=_names()) as beside:
        for part in PARTS:
            save_weights(beside / f"{part}.safetensors", getattr(checkpoint, part))
        counters = {"step": checkpoint.step, "pictures": checkpoint.pictures}
        (beside / "state.json").write_text(json.dumps(counters))
        files = {path.name: _record(path) for path in sorted(beside.iterdir())}
        (beside / "manifest.json").write_text(json.dumps({"files": files}, indent=1))
    for stale in checkpoints(folder)[:-keep]:
        for path in stale.iterdir():
            path.unlink()
        stale.rmdir()
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first; unfinished ones have other names and are not listed."""
    found = [path for path in folder.glob("ckpt-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("ckpt-")))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises BadCheckpoint naming the damaged file."""
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise BadCheckpoint("is missing", file=manifest)
    recorded = parse(manifest.read_bytes(), file=manifest, error=BadCheckpoint).get("files")
    for name in _names() - {"manifest.json"}:
        file = path / name
        if (
            not isinstance(recorded, dict)
            or not file.is_file()
            or recorded.get(name) != _record(file)
        ):
            raise BadCheckpoint("differs from its manifest, or is missing", file=file)
    counters = parse(
        (path / "state.json").read_bytes(), file=path / "state.json", error=BadCheckpoint
    )
    tensors = {part: load_weights(path / f"{part}.safetensors") for part in PARTS}
    return Checkpoint(
        step=int(str(counters["step"])), pictures=int(str(counters["pictures"])), **tensors
    )


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones."""
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path), damaged
        except DitscopeError as error:
            damaged.append(str(error))
    return None, damaged


def _names() -> set[str]:
    return {f"{part}.safetensors" for part in PARTS} | {"state.json", "manifest.json"}


def _record(path: Path) -> dict[str, object]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}
