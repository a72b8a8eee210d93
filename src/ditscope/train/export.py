"""From a training folder to a pipeline folder that `ditscope.load` reads: averaged weights draw."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ditscope.core.atomic import check_replaceable, new_folder
from ditscope.core.pipeline_config import (
    AUTOENCODER,
    AUTOENCODER_FILES,
    CONFIG_FILE,
    WEIGHTS_FILE,
    PipelineConfig,
    write_pipeline_config,
)
from ditscope.core.strict_json import read, validated
from ditscope.data.codecs import Latent, LatentCodec, absolute_codec
from ditscope.errors import BadCheckpoint, BadRequest, ResourceError
from ditscope.model.weights import save_weights
from ditscope.train.checkpoint import checkpoint_place, load_checkpoint, newest_checkpoint
from ditscope.train.coarse import coarse_config
from ditscope.train.config import TrainConfig
from ditscope.train.posthoc import LENGTHS
from ditscope.train.snapshots import averaged
from ditscope.train.sources import label_names

REPLACEABLE = frozenset(
    {CONFIG_FILE, WEIGHTS_FILE, *(f"{AUTOENCODER}/{name}" for name in AUTOENCODER_FILES)}
)
DEFAULTS: dict[str, object] = {"steps": 50, "cfg_scale": 4.0}


def check_export(config: TrainConfig, training: Path, destination: Path, overwrite: bool) -> None:
    """Raise what `export` would raise after a whole training, before it.

    Raises:
        BadRequest: the destination is the training, exists and may not be replaced, or the
            training ends in its coarse stage.
        ResourceError: its parent folder is missing or read-only.
    """
    check_destination(training, destination, overwrite)
    if config.steps <= config.coarse_steps:
        raise BadRequest(
            f"the training ends at step {config.steps}, in its coarse stage", field="export"
        )


def check_destination(training: Path, destination: Path, overwrite: bool) -> None:
    """Raise what is wrong with a destination before any weight is read.

    Raises:
        BadRequest: it is the training, or exists and may not be replaced.
        ResourceError: its parent folder is missing or read-only.
    """
    if destination.resolve() == training.resolve():
        raise BadRequest("is the folder of the training", file=destination, field="export")
    check_replaceable(destination, REPLACEABLE if overwrite else None)
    if not os.access(destination.resolve().parent, os.W_OK | os.X_OK):
        raise ResourceError("its parent folder is missing or read-only", file=destination)


@dataclass(frozen=True)
class Exported:
    """What was written, and sentences a person should read."""

    config: PipelineConfig
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Weights:
    """Averaged weights of a step, and how they came about."""

    state: dict[str, Tensor]
    facts: dict[str, int | float]
    notes: tuple[str, ...] = field(default=())


def export(
    training: Path,
    destination: Path,
    *,
    step: int | None = None,
    ema_length: float | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write averaged weights of a training, bfloat16, as a pipeline folder.

    Args:
        training: Its folder.
        destination: The pipeline folder.
        step: After how many steps; in the coarse stage it is the coarse network that is written,
            with patches twice as large. None: at the newest checkpoint, or with `ema_length` at the
            newest snapshot. Of a step whose checkpoint is not kept any more, snapshots make the
            average.
        ema_length: Make the average of this length out of snapshots: its standard deviation over
            time, as a share of the steps before. None: the average in the checkpoint.
        overwrite: Replace a pipeline folder.

    Raises:
        BadCheckpoint: there is no training, no whole checkpoint or no snapshots to make it of, or
            no step is asked for and the training is still in its coarse stage.
        BadRequest: the destination exists and may not be replaced, or a length that cannot be.
        ResourceError: it cannot be written.
    """
    place = training / CONFIG_FILE
    config = validated(
        TrainConfig, read(place, error=BadCheckpoint), file=place, error=BadCheckpoint
    )
    weights = _weights(training, config, step, ema_length)
    network, notes = config.model, weights.notes
    if weights.facts["step"] <= config.coarse_steps:
        network = coarse_config(network)
        notes += (f"it is in the coarse stage: its patches have {network.patch_size} pixels",)
    found = absolute_codec(config.codec)
    autoencoder = found.folder if isinstance(found, LatentCodec) else None
    codec = found.config
    if isinstance(codec, Latent):
        codec = codec.model_copy(update={"autoencoder": AUTOENCODER if autoencoder else None})
    described = PipelineConfig(
        model=network.model_dump(mode="json"),
        process=config.process.model_dump(mode="json"),
        codec=codec.model_dump(mode="json"),
        labels=label_names(config),
        defaults=DEFAULTS,
        training={
            **config.model_dump(mode="json", exclude={"model", "process", "labels"}),
            **weights.facts,
        },
    )
    with new_folder(destination, replaceable=REPLACEABLE if overwrite else None) as beside:
        save_weights(beside / WEIGHTS_FILE, weights.state, dtype=torch.bfloat16)
        write_pipeline_config(beside, described)
        if autoencoder is not None:
            (beside / AUTOENCODER).mkdir()
            for name in AUTOENCODER_FILES:
                shutil.copyfile(autoencoder / name, beside / AUTOENCODER / name)
    return Exported(described, notes)


def _weights(
    training: Path, config: TrainConfig, step: int | None, length: float | None
) -> _Weights:
    if length is None and (step is None or checkpoint_place(training, step).is_dir()):
        return _of_checkpoint(training, config, step)
    notes: tuple[str, ...] = ()
    if length is None:
        length = LENGTHS[-1]
        notes = (f"no checkpoint of step {step} is kept: its average has length {length:g}",)
    made, damaged = averaged(training, config, step=step, length=length)
    notes += (
        f"made of {made.snapshots} averages in snapshots, with an error of {made.error:.1%} of its "
        "weight over time",
        *(f"left out {problem}" for problem in damaged),
    )
    facts: dict[str, int | float] = {"step": made.step, "pictures": made.pictures}
    return _Weights(made.state, {**facts, "ema_length": length}, notes)


def _of_checkpoint(training: Path, config: TrainConfig, step: int | None) -> _Weights:
    if step is None:
        checkpoint, damaged = newest_checkpoint(training)
        if checkpoint is None:
            problem = f"no whole checkpoint; {damaged[0]}" if damaged else "no checkpoint"
            raise BadCheckpoint(problem, file=training)
    else:
        checkpoint, damaged = load_checkpoint(checkpoint_place(training, step)), []
    if checkpoint.step <= config.coarse_steps and step is None:
        problem = f"step {checkpoint.step} is in the coarse stage (to step {config.coarse_steps})"
        fix = f"train on, then export; `ditscope export --step {checkpoint.step}` writes that stage"
        raise BadCheckpoint(problem, file=training, fix=fix)
    facts: dict[str, int | float] = {"step": checkpoint.step, "pictures": checkpoint.pictures}
    return _Weights(checkpoint.ema, facts, tuple(f"left out {problem}" for problem in damaged))
