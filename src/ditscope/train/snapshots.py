"""Snapshots of the two power-function averages of a training, and averages made of them.

snapshots/0000500/
  average-0.05.safetensors  average-0.1.safetensors    float16, as they were after step 499
  manifest.json             step, pictures seen, size and sha256 of every file
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor

from ditscope.core.atomic import file_sha256, new_folder
from ditscope.core.strict_json import read, validated
from ditscope.errors import BadCheckpoint, DitscopeError, ResourceError
from ditscope.model.layers import position_table
from ditscope.model.weights import load_weights, save_weights
from ditscope.train.coarse import coarse_positions, refine
from ditscope.train.config import TrainConfig
from ditscope.train.folder import SNAPSHOTS as FOLDER
from ditscope.train.posthoc import LENGTHS, exponent, fit

MANIFEST = "manifest.json"
MOST_ERROR = 0.25
"""An average is refused if its weight over time cannot be made with a smaller error."""

NAME = re.compile(r"\d{7,}")
POSITIONS = "pos_embed"
AVERAGES = tuple(f"average-{length:g}" for length in LENGTHS)
"""Names of the averages, of each the exponent is that of its length."""


class _Manifest(BaseModel):
    """`manifest.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    step: PositiveInt
    pictures: NonNegativeInt
    files: dict[str, str]  # sha256 by name


@dataclass(frozen=True)
class Average:
    """Weights averaged over a training after it."""

    step: int
    pictures: int
    state: dict[str, Tensor]  # float32; in the coarse stage those of its network
    snapshots: int  # how many it was made of
    error: float  # of its weight over time (`Fit`)


def save_snapshot(training: Path, step: int, pictures: int, state: dict[str, Tensor]) -> None:
    """Keep the averages after step `step - 1`: tensors by AVERAGE.NAME. Raises ResourceError."""
    folder = training / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as reason:
        raise ResourceError(f"cannot be made: {reason.strerror}", file=folder) from None
    with new_folder(folder / f"{step:07d}", replaceable=_names()) as beside:
        for average, tensors in split(state).items():
            save_weights(beside / f"{average}.safetensors", tensors, dtype=torch.float16)
        files = {path.name: file_sha256(path) for path in sorted(beside.iterdir())}
        told = {"step": step, "pictures": pictures, "files": files}
        (beside / MANIFEST).write_text(json.dumps(told, indent=1))


def split(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by AVERAGE.NAME as tensors by name, by average."""
    return {
        average: {
            name.removeprefix(f"{average}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{average}.")
        }
        for average in AVERAGES
    }


def snapshots(training: Path) -> dict[int, Path]:
    """Folders of snapshots by step, in order."""
    found = [path for path in (training / FOLDER).glob("*") if NAME.fullmatch(path.name)]
    return {int(path.name): path for path in sorted(found, key=lambda path: int(path.name))}


def averaged(
    training: Path, config: TrainConfig, *, step: int | None, length: float
) -> tuple[Average, list[str]]:
    """The average of a length at a step, from all snapshots that are whole.

    Those of a coarse stage are made fine first, which is linear, so the average may be made after
    it. In that stage the average is one of the coarse network.

    Args:
        training: Folder of a training.
        config: Its configuration.
        step: The weights of steps up to it are averaged; None: up to the last snapshot.
        length: Standard deviation of the weight over time, as a share of the steps before `step`.

    Returns:
        The average, and what was wrong with snapshots that were left out.

    Raises:
        BadRequest: a length that cannot be.
        BadCheckpoint: there are no snapshots, none that is whole, or none after the step.
    """
    power = exponent(length)
    manifests, damaged = _verified(training)
    if not manifests:
        raise BadCheckpoint(
            f"no whole snapshot; {damaged[0]}" if damaged else "no snapshots",
            file=training,
            fix=None if damaged else "train with --set snapshot_every=STEPS to keep them",
        )
    last = max(manifests)
    time = last if step is None else step
    if time > last:
        raise BadCheckpoint(f"step {time} is after the last whole snapshot, {last}", file=training)
    coarse = time <= config.coarse_steps
    manifests = {each: one for each, one in manifests.items() if _coarse(each, config) >= coarse}
    kept = [(each, number) for each in manifests for number in range(len(LENGTHS))]
    powers = [exponent(LENGTHS[number]) for _, number in kept]
    found = fit([each for each, _ in kept], powers, time, power)
    if found.error > MOST_ERROR:
        raise BadCheckpoint(
            f"the snapshots make the average of length {length:g} at step {time} with an error of "
            f"{found.error:.0%}",
            file=training,
            expected=f"at most {MOST_ERROR:.0%}",
            fix=f"take the step of a snapshot, such as {_nearest(manifests, time)}, and a length "
            f"near {LENGTHS[0]:g} to {LENGTHS[1]:g}",
        )
    total: dict[str, Tensor] = {}
    for (each, number), share in zip(kept, found.shares.tolist(), strict=True):
        place = snapshots(training)[each] / f"{AVERAGES[number]}.safetensors"
        state = {name: tensor.float() for name, tensor in load_weights(place).items()}
        made_fine = _coarse(each, config) and not coarse
        _add(total, refine(state, config.model) if made_fine else state, share)
    # Positions are never learned, and need not be rounded.
    table = position_table(*config.model.grid, config.model.hidden_size)[None]
    total[POSITIONS] = coarse_positions(config.model) if coarse else table
    newest = max(manifests)
    pictures = manifests[newest].pictures * time // newest
    return Average(time, pictures, total, len(kept), found.error), damaged


def _nearest(steps: Iterable[int], time: int) -> int:
    return min(steps, key=lambda step: abs(step - time))


def _verified(training: Path) -> tuple[dict[int, _Manifest], list[str]]:
    """Manifests of the snapshots that are whole, and what is wrong with others."""
    whole: dict[int, _Manifest] = {}
    damaged: list[str] = []
    for step, folder in snapshots(training).items():
        file = folder / MANIFEST
        try:
            manifest = validated(
                _Manifest, read(file, error=BadCheckpoint), file=file, error=BadCheckpoint
            )
            for name in sorted(_names() - {MANIFEST}):
                path = folder / name
                if not path.is_file() or manifest.files.get(name) != file_sha256(path):
                    raise BadCheckpoint("differs from its manifest, or is missing", file=path)
        except DitscopeError as error:
            damaged.append(str(error))
        else:
            whole[step] = manifest
    return whole, damaged


def _coarse(step: int, config: TrainConfig) -> bool:
    return step <= config.coarse_steps


def _add(total: dict[str, Tensor], state: dict[str, Tensor], share: float) -> None:
    for name, tensor in state.items():
        if name in total:
            total[name].add_(tensor, alpha=share)
        else:
            total[name] = tensor * share


def _names() -> set[str]:
    return {*(f"{average}.safetensors" for average in AVERAGES), MANIFEST}
