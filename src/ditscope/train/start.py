"""Weights that a training begins with: those of a pipeline, of published files or of a training.

Shapes: D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ditscope.core.bundled import BUNDLED, bundled_folder
from ditscope.core.pipeline_config import CONFIG_FILE
from ditscope.core.strict_json import read, validated
from ditscope.errors import BadCheckpoint, BadConfig
from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT
from ditscope.model.sources import read_source
from ditscope.model.weights import load_into, weights_sha256
from ditscope.train.checkpoint import NAME, load_checkpoint, newest_checkpoint
from ditscope.train.coarse import coarsen
from ditscope.train.config import TrainConfig
from ditscope.train.sources import label_names

TABLE = "y_embedder.embedding_table.weight"
POSITIONS = "pos_embed"
MAY_DIFFER = frozenset({"num_classes", "input_size", "class_dropout_prob"})
"""What a training may change in the network it begins with."""


@dataclass(frozen=True)
class Start:
    """Weights, and what they were trained for."""

    model: DiTConfig
    process: dict[str, object]
    labels: tuple[str, ...]  # by index, without the null class
    state: dict[str, Tensor]

    @property
    def digest(self) -> str:
        """Identity of the weights."""
        return weights_sha256(self.state)


def read_start(place: str) -> Start:
    """The weights at `place`; of a training, the averaged ones.

    It is a bundled name, anything `ditscope.load` reads, the folder of a training (its newest whole
    checkpoint), or one of its checkpoints.

    Raises BadCheckpoint if there are none, or none that can be read.
    """
    path = bundled_folder(place) if place in BUNDLED else Path(place)
    if NAME.fullmatch(path.name) and path.is_dir():
        return _of_training(path.parent, path)
    if (path / "log.jsonl").is_file():
        return _of_training(path, None)
    found = read_source(path)
    found.weights.check(file=path)
    return Start(
        found.weights.config, found.config.process, found.config.labels, found.weights.state
    )


def begin(model: DiT, config: TrainConfig) -> None:
    """Give a new network the weights that `config.init` names.

    Classes keep their rows of the label table, under their names; new ones have the fresh rows
    of the network, and the null class stays last. Positions are those of the network. Where the
    training has a coarse stage, the weights are made coarse.

    Raises:
        BadCheckpoint: as `read_start`, or the weights are not those that were meant.
        BadConfig: they belong to another network; names the first field that differs.
    """
    assert config.init is not None
    start = read_start(config.init)
    if config.init_digest not in (None, start.digest):
        raise BadCheckpoint("these are not the weights the training began with", file=config.init)
    for name in type(start.model).model_fields:
        theirs, ours = getattr(start.model, name), getattr(config.model, name)
        if name not in MAY_DIFFER and theirs != ours:
            raise BadConfig(
                f"found {ours}", field=f"model.{name}", expected=f"{theirs}, as in {config.init}"
            )
    fresh = model.state_dict()
    table = fresh[TABLE].clone()
    rows = dict(zip(start.labels, start.state[TABLE], strict=False))  # the null class has no name
    for index, name in enumerate(label_names(config)):
        if name in rows:
            table[index] = rows[name]
    if start.model.class_dropout_prob > 0 and config.model.class_dropout_prob > 0:
        table[-1] = start.state[TABLE][-1]
    state = coarsen(start.state, config.model) if config.coarse_steps else start.state
    load_into(model, {**state, TABLE: table, POSITIONS: fresh[POSITIONS]}, config.init)


def _of_training(folder: Path, chosen: Path | None) -> Start:
    file = folder / CONFIG_FILE
    config = validated(TrainConfig, read(file, error=BadCheckpoint), file=file, error=BadCheckpoint)
    checkpoint = load_checkpoint(chosen) if chosen else newest_checkpoint(folder)[0]
    if checkpoint is None:
        raise BadCheckpoint("holds no whole checkpoint", file=folder)
    if config.coarse_steps and checkpoint.step <= config.coarse_steps:
        raise BadCheckpoint(f"step {checkpoint.step} is in the coarse stage", file=chosen or folder)
    process = config.process.model_dump(mode="json")
    state = {name: tensor.to(torch.float32) for name, tensor in checkpoint.ema.items()}
    return Start(config.model, process, label_names(config), state)
