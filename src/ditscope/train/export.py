"""From a training folder to a pipeline folder that `ditscope.load` reads: the EMA weights draw."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

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
from ditscope.train.checkpoint import newest_checkpoint
from ditscope.train.config import TrainConfig
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
    if destination.resolve() == training.resolve():
        raise BadRequest("is the folder of the training", file=destination, field="export")
    if config.steps <= config.coarse_steps:
        raise BadRequest(
            f"the training ends at step {config.steps}, in its coarse stage", field="export"
        )
    check_replaceable(destination, REPLACEABLE if overwrite else None)
    if not os.access(destination.resolve().parent, os.W_OK | os.X_OK):
        raise ResourceError("its parent folder is missing or read-only", file=destination)


def export(training: Path, destination: Path, *, overwrite: bool = False) -> PipelineConfig:
    """Write the newest checkpoint that verifies, bfloat16, as a pipeline folder.

    Raises:
        BadCheckpoint: there is no whole checkpoint, or it is still in its coarse stage.
        BadRequest: the destination exists and may not be replaced.
        ResourceError: it cannot be written.
    """
    config = validated(TrainConfig, read(training / CONFIG_FILE), file=training / CONFIG_FILE)
    checkpoint, damaged = newest_checkpoint(training)
    if checkpoint is None:
        problem = f"no whole checkpoint; {damaged[0]}" if damaged else "no checkpoint"
        raise BadCheckpoint(problem, file=training)
    if checkpoint.step <= config.coarse_steps:
        problem = f"step {checkpoint.step} is in the coarse stage (to step {config.coarse_steps})"
        raise BadCheckpoint(problem, file=training, fix="train on, then export")
    found = absolute_codec(config.codec)
    autoencoder = found.folder if isinstance(found, LatentCodec) else None
    codec = found.config
    if isinstance(codec, Latent):
        codec = codec.model_copy(update={"autoencoder": AUTOENCODER if autoencoder else None})
    described = PipelineConfig(
        model=config.model.model_dump(mode="json"),
        process=config.process.model_dump(mode="json"),
        codec=codec.model_dump(mode="json"),
        labels=label_names(config),
        defaults=DEFAULTS,
        training={
            **config.model_dump(mode="json", exclude={"model", "process", "labels"}),
            "step": checkpoint.step,
            "pictures": checkpoint.pictures,
        },
    )
    with new_folder(destination, replaceable=REPLACEABLE if overwrite else None) as beside:
        save_weights(beside / WEIGHTS_FILE, checkpoint.ema, dtype=torch.bfloat16)
        write_pipeline_config(beside, described)
        if autoencoder is not None:
            (beside / AUTOENCODER).mkdir()
            for name in AUTOENCODER_FILES:
                shutil.copyfile(autoencoder / name, beside / AUTOENCODER / name)
    return described
