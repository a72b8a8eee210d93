"""A pipeline: a network with all that is needed to draw with it.

    pipe = load("emoji")                       # the bundled one
    pipe = load("DiT-XL-2-256x256.pt")         # published weights
    pipe = load("path/to/folder")              # ours, or a diffusers folder

Shapes: B rows, C channels, h and w the latent grid.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from ditscope.core import strict_json
from ditscope.core.bundled import BUNDLED, bundled_folder
from ditscope.core.pipeline_config import CONFIG_FILE, PipelineConfig
from ditscope.core.variants import VARIANTS
from ditscope.data.codecs import Codec, codec
from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.flow import FlowProcess
from ditscope.errors import BadCheckpoint, BadRequest, ResourceError, foreign
from ditscope.model.dit import DiT
from ditscope.model.published import load_published
from ditscope.model.sources import Source, read_source
from ditscope.model.weights import weights_sha256 as digest_of

DType = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
Process = DDPMProcess | FlowProcess


class Defaults(BaseModel):
    """How a pipeline samples unless it is told otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: PositiveInt = 50
    sampler: str | None = None  # None: the usual one of the noise process
    cfg_scale: float = Field(default=4.0, ge=0)


@dataclass(frozen=True)
class Pipeline:
    """Network, noise process, codec and class names.

    `source` and `weights` find it again: a bundled name or absolute paths.
    """

    name: str
    source: str
    weights: str | None
    model: DiT
    process: Process
    codec: Codec
    labels: tuple[str, ...]
    defaults: Defaults
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> DType:
        """Number type of the weights, and so of the network's arithmetic."""
        return DTYPES[self.model.pos_embed.dtype]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.pos_embed.device

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights as they are now, in the number type they compute in."""
        return digest_of(self.model.state_dict())

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        config = self.model.config
        return config.in_channels, config.input_height, config.input_width

    def network(self, x: Tensor, timestep: float, labels: Tensor) -> Tensor:
        """The raw output (B, C or 2 C, h, w) float32 for a state (B, C, h, w) float32."""
        t = torch.full((len(x),), timestep, device=self.device)
        return self.model(x.to(self.device, self.model.pos_embed.dtype), t, labels).float()

    def to(self, device: str | torch.device | None = None, dtype: DType | None = None) -> Pipeline:
        """The same pipeline with its network moved or converted (in place, as torch does).

        Raises ResourceError if there is no such device.
        """
        if device is not None:
            device = checked_device(device)
        kind = None if dtype is None else getattr(torch, dtype)
        return replace(self, model=self.model.to(device=device, dtype=kind))


def load(
    source: str | os.PathLike[str] = "emoji",
    *,
    weights: str | os.PathLike[str] | None = None,
    num_heads: int | None = None,
    device: str = "cpu",
    dtype: DType | None = None,
) -> Pipeline:
    """A pipeline from a bundled name, a folder, or a published file.

    Args:
        source: A bundled name ("emoji"), one of our folders, a diffusers folder, a published `.pt`
            file, or a safetensors file under the published names.
        weights: Other weights for the same network: a `.pt` or safetensors file.
        num_heads: For weights of an unpublished size, which do not tell it.
        device: Where the network goes.
        dtype: Number type of the network; None: bfloat16 where this machine multiplies it fast,
            else float32.

    Raises:
        BadCheckpoint: nothing there, or nothing that can be read safely.
        BadRequest: a name that is neither bundled nor a path.
        ResourceError: no such device.
    """
    where = checked_device(device)
    place = _locate(source)
    found = read_source(place, num_heads=num_heads)
    state = found.weights.state
    if weights is not None:
        state = _other_weights(weights, found)
        found = replace(found, weights=replace(found.weights, state=state))
    file = place / CONFIG_FILE if place.is_dir() else place
    pipeline = Pipeline(
        name=str(source) if str(source) in BUNDLED else Path(source).stem or str(source),
        source=str(source) if str(source) in BUNDLED else str(place.resolve()),
        weights=None if weights is None else str(Path(weights).resolve()),
        model=found.weights.build(file=weights or place),
        process=_process(found.config.process, file),
        codec=codec(found.config.codec, place if place.is_dir() else place.parent),
        labels=found.config.labels,
        defaults=strict_json.validated(
            Defaults, found.config.defaults, file=file, field="defaults", error=BadCheckpoint
        ),
        notes=found.weights.notes,
    )
    _check_agreement(found.config, pipeline, place)
    return pipeline.to(where, dtype or default_dtype(where))


def default_dtype(device: torch.device) -> DType:
    """bfloat16 where it is fast (CUDA, or a CPU with AMX tiles), else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bfloat16" if fast else "float32"


def checked_device(name: str | torch.device) -> torch.device:
    """The device that a user named.

    Raises:
        BadRequest: that is no device.
        ResourceError: this machine has none such.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadRequest(
            f"found {foreign(name)}", field="device", expected="cpu, cuda, cuda:1, ..."
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("there is no CUDA device", field="device", fix="`cpu` works")
    return device


def checked_dtype(name: str | None) -> DType | None:
    """The number type that a user named. Raises BadRequest for any other."""
    for known in DTYPES.values():
        if name == known:
            return known
    if name is None:
        return None
    raise BadRequest(f"found {foreign(name)}", field="dtype", expected=", ".join(DTYPES.values()))


def _locate(source: str | os.PathLike[str]) -> Path:
    if str(source) in BUNDLED:
        return bundled_folder(str(source))
    place = Path(source)
    if place.exists():
        return place
    if str(source) in VARIANTS:
        raise BadRequest(
            f"{source} is a published size, not weights",
            field="model",
            fix="give the file or folder of its weights; `ditscope.build` makes untrained ones",
        )
    near = difflib.get_close_matches(str(source), BUNDLED, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"bundled: {', '.join(BUNDLED)}"
    raise BadRequest(
        f"{foreign(source)!r} is neither a bundled model nor a path that exists",
        field="model",
        fix=hint,
    )


def _other_weights(file: str | os.PathLike[str], found: Source) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise BadCheckpoint("no such file", file=file)
    return load_published(file, num_heads=found.weights.config.num_heads).state


def _process(config: dict[str, object], file: Path) -> Process:
    kind = FlowProcess if config.get("kind") == "flow" else DDPMProcess
    return strict_json.validated(kind, config, file=file, field="process", error=BadCheckpoint)


def _check_agreement(config: PipelineConfig, pipeline: Pipeline, place: Path) -> None:
    """Raise BadCheckpoint where network, process and labels contradict each other."""
    model, process = pipeline.model.config, pipeline.process
    learned = isinstance(process, DDPMProcess) and process.learn_sigma
    if model.learn_sigma != learned:
        problem = f"the network's learn_sigma is {model.learn_sigma}, the process's {learned}"
        raise BadCheckpoint(problem, file=place, field="process")
    if len(config.labels) != model.num_classes:
        problem = f"{len(config.labels)} labels for {model.num_classes} classes"
        raise BadCheckpoint(problem, file=place, field="labels")
    if pipeline.codec.config.kind == "rgb" and model.in_channels != 3:
        problem = f"{model.in_channels} latent channels cannot be RGB"
        raise BadCheckpoint(problem, file=place, field="codec")
