"""Every place a network can come from, read into the same two things: weights and configuration.

What is found at a path decides how it is read: our pipeline folder, a diffusers model or pipeline
folder, a published `.pt` file, or a safetensors file under the published names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from ditscope.core import strict_json
from ditscope.core.pipeline_config import (
    AUTOENCODER,
    AUTOENCODER_FILES,
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    PipelineConfig,
    read_pipeline_config,
    refuse_code,
)
from ditscope.errors import BadCheckpoint, BadRequest, foreign
from ditscope.model.config import DiTConfig
from ditscope.model.diffusers_format import load_diffusers
from ditscope.model.published import Part, load_published
from ditscope.model.weights import ModelWeights, load_weights

LATENT_SCALE = 0.18215
"""What the published models multiply latents of the Stable Diffusion autoencoder by."""

DIFFUSERS_INDEX = "model_index.json"


@dataclass(frozen=True)
class Source:
    """A network and all that is known about its use. `config.model` equals `weights.config`."""

    weights: ModelWeights
    config: PipelineConfig


class _Scheduler(BaseModel):
    """What a diffusers scheduler says of the noise process; its other fields are the sampler's."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    beta_schedule: Literal["linear"] = "linear"
    trained_betas: None = None
    prediction_type: Literal["epsilon"] = "epsilon"
    rescale_betas_zero_snr: Literal[False] = False


class _Autoencoder(BaseModel):
    """What a diffusers autoencoder says of its latents."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    scaling_factor: float = LATENT_SCALE


Neighbour = TypeVar("Neighbour", bound=BaseModel)


def read_source(
    path: str | os.PathLike[str],
    *,
    num_heads: int | None = None,
    part: Part | None = None,
    frequency_shift: Literal[0, 1] | None = None,
    unpickle: bool = False,
) -> Source:
    """The network at `path`, wherever it came from.

    Args:
        path: A file or a folder.
        num_heads: Published weights of a size that was not published do not tell it.
        part: Half of a training checkpoint (`load_published`).
        frequency_shift: How diffusers weights were trained (`load_diffusers`).
        unpickle: Read pickled diffusers weights too (`load_diffusers`).

    Raises:
        BadCheckpoint: there is nothing, or nothing that can be read safely.
        BadRequest: an option has no meaning for what was found.
    """
    place = Path(path)
    if place.is_file():
        _refuse_unused("a weight file", frequency_shift=frequency_shift)
        return _with_defaults(load_published(place, num_heads=num_heads, part=part))
    if not place.is_dir():
        raise BadCheckpoint("no such file or folder", file=path)
    _refuse_unused("a folder", num_heads=num_heads, part=part)
    if (place / DIFFUSERS_INDEX).exists():
        return _diffusers_pipeline(place, frequency_shift, unpickle)
    file = place / CONFIG_FILE
    if not file.exists():
        raise BadCheckpoint(f"holds no {CONFIG_FILE}", file=path, expected="a model folder")
    tree = strict_json.read(file, error=BadCheckpoint)
    refuse_code(tree, file)
    if tree.get("format") == FORMAT:
        _refuse_unused("our own folder", frequency_shift=frequency_shift)
        return _own(place)
    if "_class_name" in tree:
        weights = load_diffusers(place, frequency_shift=frequency_shift, unpickle=unpickle)
        return _with_defaults(weights)
    raise BadCheckpoint(
        "is the configuration of something else",
        file=file,
        expected=f'"format": "{FORMAT}", or a diffusers DiT',
        fix="of a training, load what `ditscope train ... --export FOLDER` writes"
        if "optimizer" in tree
        else None,
    )


def _refuse_unused(place: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise BadRequest(f"has no meaning for {place}", field=name)


def _own(folder: Path) -> Source:
    config = read_pipeline_config(folder)
    file = folder / CONFIG_FILE
    model = strict_json.validated(
        DiTConfig, config.model, file=file, field="model", error=BadCheckpoint
    )
    return Source(ModelWeights(model, load_weights(folder / WEIGHTS_FILE)), config)


def _with_defaults(weights: ModelWeights) -> Source:
    return Source(weights, _described(weights, _Scheduler(), _Autoencoder(), None))


def _diffusers_pipeline(
    folder: Path, frequency_shift: Literal[0, 1] | None, unpickle: bool
) -> Source:
    """Network, and from beside it class names, noise process and latent scale."""
    # The small files first: what is wrong with them is known before any weight is read.
    scheduler = _neighbour(_Scheduler, folder / "scheduler" / "scheduler_config.json")
    autoencoder = _neighbour(_Autoencoder, folder / AUTOENCODER / "config.json")
    weights = load_diffusers(
        folder / "transformer", frequency_shift=frequency_shift, unpickle=unpickle
    )
    names = _class_names(folder / DIFFUSERS_INDEX, weights.config.num_classes)
    config = _described(weights, scheduler, autoencoder, names)
    if all((folder / AUTOENCODER / name).is_file() for name in AUTOENCODER_FILES):
        config = config.model_copy(update={"codec": {**config.codec, "autoencoder": AUTOENCODER}})
    return Source(weights, config)


def _neighbour(model: type[Neighbour], file: Path) -> Neighbour:
    if not file.exists():
        return model()
    tree = strict_json.read(file, error=BadCheckpoint)
    refuse_code(tree, file)
    return strict_json.validated(model, tree, file=file, error=BadCheckpoint)


def _class_names(file: Path, count: int) -> tuple[str, ...] | None:
    """Names by index, or None if a pipeline does not name its classes."""
    tree = strict_json.read(file, error=BadCheckpoint)
    refuse_code(tree, file)
    names = tree.get("id2label")
    if not names:
        return None
    if not isinstance(names, dict) or names.keys() != {str(index) for index in range(count)}:
        raise BadCheckpoint(
            "does not name each class once",
            file=file,
            field="id2label",
            expected=f"0 to {count - 1}",
        )
    odd = [name for name in names.values() if not isinstance(name, str)]
    if odd:
        raise BadCheckpoint(f"{foreign(odd[0])} is not a name", file=file, field="id2label")
    return tuple(str(names[str(index)]) for index in range(count))


def _described(
    weights: ModelWeights,
    scheduler: _Scheduler,
    autoencoder: _Autoencoder,
    names: tuple[str, ...] | None,
) -> PipelineConfig:
    config = weights.config
    return PipelineConfig(
        model=config.model_dump(mode="json"),
        process={
            "kind": "ddpm",
            "num_timesteps": scheduler.num_train_timesteps,
            "beta_start": scheduler.beta_start,
            "beta_end": scheduler.beta_end,
            "learn_sigma": config.learn_sigma,
        },
        codec={"kind": "latent", "scale": autoencoder.scaling_factor},
        labels=names or tuple(str(index) for index in range(config.num_classes)),
    )
