"""Checkpoints that are whole or absent, and the newest one that verifies.

ckpt-0000500/
  model.safetensors  ema.safetensors  optimizer.safetensors
  averages.safetensors  by AVERAGE.NAME, if snapshots are kept (see snapshots.py)
  state.json          step, pictures seen, steps skipped, losses since the last report
  manifest.json       size and sha256 of every file, written last
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt
from torch import Tensor

from ditscope.core.atomic import file_sha256, new_folder
from ditscope.core.strict_json import read, validated
from ditscope.errors import BadCheckpoint, DitscopeError
from ditscope.model.weights import load_weights, save_weights

STATE, MANIFEST = "state.json", "manifest.json"
PARTS = ("model", "ema", "optimizer")
AVERAGES = "averages"
NAME = re.compile(r"ckpt-(\d{7,})")


@dataclass(frozen=True)
class Checkpoint:
    """All that a training is at the end of step `step - 1`."""

    step: int
    pictures: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    averages: dict[str, Tensor] = field(default_factory=dict)  # empty: none are kept
    skipped: int = 0
    losses: tuple[float, ...] = ()  # since the last report
    place: tuple[int, ...] = ()  # of the next picture, as its source tells it


class _Counters(BaseModel):
    """`state.json`. The older ones have only the first two."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    step: NonNegativeInt
    pictures: NonNegativeInt
    skipped: NonNegativeInt = 0
    losses: tuple[float, ...] = ()
    place: tuple[NonNegativeInt, ...] = ()


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write a checkpoint under `folder`, then drop all but it and the `keep - 1` before.

    Later ones go too: they are damaged, or we would have gone on from there.

    Raises ResourceError if it cannot be written; the older ones are untouched then.
    """
    target = checkpoint_place(folder, checkpoint.step)
    with new_folder(target, replaceable=_names()) as beside:
        for part in (*PARTS, AVERAGES) if checkpoint.averages else PARTS:
            save_weights(beside / f"{part}.safetensors", getattr(checkpoint, part))
        counters = {name: getattr(checkpoint, name) for name in _Counters.model_fields}
        (beside / STATE).write_text(json.dumps(counters, allow_nan=False))
        files = {path.name: _record(path) for path in sorted(beside.iterdir())}
        (beside / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    found = checkpoints(folder)
    place = found.index(target) + 1
    for stale in (*found[: max(0, place - keep)], *found[place:]):
        shutil.rmtree(stale, ignore_errors=True)
    return target


def checkpoint_place(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return folder / f"ckpt-{step:07d}"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first; unfinished ones have other names and are not listed."""
    found = [path for path in folder.glob("ckpt-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("ckpt-")))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises BadCheckpoint naming the damaged file."""
    manifest = path / MANIFEST
    recorded = read(manifest, error=BadCheckpoint).get("files")
    for name in sorted(_names(recorded) - {MANIFEST}):
        file = path / name
        if (
            not isinstance(recorded, dict)
            or not file.is_file()
            or recorded.get(name) != _record(file)
        ):
            raise BadCheckpoint("differs from its manifest, or is missing", file=file)
    state = path / STATE
    counters = validated(
        _Counters, read(state, error=BadCheckpoint), file=state, error=BadCheckpoint
    )
    model, ema, optimizer = (load_weights(path / f"{part}.safetensors") for part in PARTS)
    has_averages = f"{AVERAGES}.safetensors" in _names(recorded)
    averages = load_weights(path / f"{AVERAGES}.safetensors") if has_averages else {}
    return Checkpoint(
        step=counters.step,
        pictures=counters.pictures,
        model=model,
        ema=ema,
        optimizer=optimizer,
        averages=averages,
        skipped=counters.skipped,
        losses=counters.losses,
        place=counters.place,
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


def _names(recorded: object = None) -> set[str]:
    """The files of a checkpoint: of the one with this record, or all that there may be."""
    names = {f"{part}.safetensors" for part in (*PARTS, AVERAGES)} | {STATE, MANIFEST}
    if isinstance(recorded, dict) and f"{AVERAGES}.safetensors" not in recorded:
        names.remove(f"{AVERAGES}.safetensors")
    return names


def _record(path: Path) -> dict[str, object]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}
