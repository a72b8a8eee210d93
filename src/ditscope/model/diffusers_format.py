"""To and from the DiT of diffusers (`DiTTransformer2DModel`), tensor by tensor.

Shapes: D width, C channels.

Diffusers has the same network with four differences: the embedders are stored once per block, q, k
and v are three layers, the position table is recomputed, and the timestep sinusoid divides by 127
where the original divides by 128. The last is in its code, not in its configuration, so an
exported folder says in its metadata which one the weights want, and `load_in_diffusers` obeys.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from ditscope.core import strict_json
from ditscope.core.pipeline_config import refuse_code
from ditscope.errors import BadCheckpoint, BadConfig, foreign, listed
from ditscope.model.config import DiTConfig
from ditscope.model.header import read_header
from ditscope.model.infer import table_note
from ditscope.model.layers import position_table
from ditscope.model.published import read_pickled
from ditscope.model.weights import ModelWeights, load_weights, save_weights

if TYPE_CHECKING:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
SHARDS_FILE = f"{WEIGHTS_FILE}.index.json"
PICKLED_FILE = "diffusion_pytorch_model.bin"
EXPORTED_FILES = (CONFIG_FILE, WEIGHTS_FILE)

SHIFT_KEY = "ditscope.frequency_shift"
"""Metadata of the weight file: the `frequency_shift` the weights were made for."""

DROPOUT = 0.1
"""Diffusers builds the label table with a null row always, for this much dropout."""


MAX_SIDE = 1024
"""Largest latent side that is believed. The position table is not in the file and must be made."""


class DiffusersConfig(BaseModel):
    """`config.json` of the model. The literals are what makes it the network that we have too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    class_name: Literal["DiTTransformer2DModel", "Transformer2DModel"] = Field(alias="_class_name")
    version: str | None = Field(default=None, alias="_diffusers_version")
    name_or_path: str | None = Field(default=None, alias="_name_or_path")
    num_attention_heads: PositiveInt = 16
    attention_head_dim: PositiveInt = 72
    in_channels: PositiveInt = 4
    out_channels: PositiveInt | None = None
    num_layers: PositiveInt = 28
    sample_size: int = Field(default=32, gt=0, le=MAX_SIDE)
    patch_size: PositiveInt = 2
    num_embeds_ada_norm: PositiveInt = 1000
    norm_eps: float = Field(default=1e-5, gt=0)
    norm_num_groups: int = 32  # of no effect
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    attention_bias: Literal[True] = True
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: Literal[False] = False
    upcast_attention: Literal[False] = False
    dropout: float = Field(default=0.0, ge=0, le=0)
    # From the time when this network was one mode of `Transformer2DModel`:
    cross_attention_dim: None = None
    num_vector_embeds: None = None
    only_cross_attention: Literal[False] = Field(default=False, exclude=True)
    use_linear_projection: Literal[False] = Field(default=False, exclude=True)


# ---- reading ----


def load_diffusers(
    folder: str | os.PathLike[str],
    *,
    frequency_shift: Literal[0, 1] | None = None,
    unpickle: bool = False,
) -> ModelWeights:
    """The DiT in a diffusers model folder.

    Args:
        folder: Holds `config.json` and `diffusion_pytorch_model.safetensors`, whole or in shards.
        frequency_shift: How the weights were trained (see `DiTConfig`). None takes what an export
            of ours says, else 1, which reproduces what diffusers computes.
        unpickle: Also read `diffusion_pytorch_model.bin`, in a child process with limits.

    Raises:
        BadCheckpoint: the folder is not that of a DiT, is damaged, has other tensors than its
            configuration says, or per-block embedders that differ.
    """
    root = Path(folder)
    file = root / CONFIG_FILE
    tree = strict_json.read(file, error=BadCheckpoint)
    refuse_code(tree, file)
    theirs = strict_json.validated(DiffusersConfig, tree, file=file, error=BadCheckpoint)
    state, metadata = _read_state(root, unpickle)
    notes: tuple[str, ...] = ()
    if frequency_shift is None:
        said = metadata.get(SHIFT_KEY)
        frequency_shift = 0 if said == "0" else 1
        if said is None:
            notes = (
                "timesteps are embedded as diffusers does (frequency_shift 1); weights that the "
                "original code trained, such as facebook/DiT-XL-2-256, were made for 0",
            )
    config = _our_config(theirs, frequency_shift, file)
    return ModelWeights(config, _from_diffusers(state, config, root), notes)


def _read_state(root: Path, unpickle: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if (root / WEIGHTS_FILE).exists():
        header = read_header(root / WEIGHTS_FILE)
        return load_weights(root / WEIGHTS_FILE), header.metadata
    if (root / SHARDS_FILE).exists():
        return _read_shards(root / SHARDS_FILE), {}
    if not (root / PICKLED_FILE).exists():
        raise BadCheckpoint("no weights here", file=root, expected=WEIGHTS_FILE)
    if unpickle:
        return read_pickled(root / PICKLED_FILE).state, {}
    raise BadCheckpoint(
        f"holds only pickled weights ({PICKLED_FILE})",
        file=root,
        expected=WEIGHTS_FILE,
        fix="`ditscope convert SOURCE DESTINATION` reads them safely, once",
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    tree = strict_json.read(index, error=BadCheckpoint, max_bytes=16_000_000)
    places = tree.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise BadCheckpoint("is not names to files", file=index, field="weight_map")
    names = sorted(set(places.values()))
    for name in names:
        here = Path(name).name == name and name.endswith(".safetensors")
        if not here or not (index.parent / name).is_file():
            raise BadCheckpoint(
                f"names {foreign(name)}",
                file=index,
                field="weight_map",
                expected="safetensors files that are in the same folder",
            )
    state: dict[str, Tensor] = {}
    for name in names:
        shard = load_weights(index.parent / name)
        indexed = {key for key, place in places.items() if place == name}
        if shard.keys() != indexed:
            raise BadCheckpoint(
                f"holds other tensors than {index.name} says: {listed(shard.keys() ^ indexed)}",
                file=index.parent / name,
            )
        state.update(shard)
    return state


def _our_config(theirs: DiffusersConfig, frequency_shift: Literal[0, 1], file: Path) -> DiTConfig:
    channels = theirs.in_channels
    if theirs.out_channels not in (None, channels, 2 * channels):
        raise BadCheckpoint(
            f"is {theirs.out_channels}",
            file=file,
            field="out_channels",
            expected=f"{channels} or {2 * channels}",
        )
    try:
        return DiTConfig(
            input_size=theirs.sample_size,
            patch_size=theirs.patch_size,
            in_channels=channels,
            hidden_size=theirs.num_attention_heads * theirs.attention_head_dim,
            depth=theirs.num_layers,
            num_heads=theirs.num_attention_heads,
            class_dropout_prob=DROPOUT,
            num_classes=theirs.num_embeds_ada_norm,
            learn_sigma=theirs.out_channels == 2 * channels,
            frequency_shift=frequency_shift,
            mlp_norm_eps=theirs.norm_eps,
        )
    except BadConfig as reason:
        raise BadCheckpoint(reason.problem, file=file, field=reason.field) from None


# ---- names ----

_PLAIN = {"x_embedder.proj": "pos_embed.proj"} | {
    "final_layer.linear": "proj_out_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
}
_PER_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_EMBEDDERS = {
    "t_embedder.mlp.0.weight": "norm1.emb.timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "norm1.emb.timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "norm1.emb.timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "norm1.emb.timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "norm1.emb.class_embedder.embedding_table.weight",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")


def _one_to_one(depth: int) -> dict[str, str]:
    """Our name to diffusers' name, for the tensors that are the same on both sides."""
    layers = dict(_PLAIN)
    for i in range(depth):
        for ours, theirs in _PER_BLOCK.items():
            layers[f"blocks.{i}.{ours}"] = f"transformer_blocks.{i}.{theirs}"
    return {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in layers.items()
        for kind in ("weight", "bias")
    }


def _from_diffusers(state: dict[str, Tensor], config: DiTConfig, folder: Path) -> dict[str, Tensor]:
    """Published names. Every tensor of `state` is used, or the folder is refused."""
    blocks = len({name.split(".")[1] for name in state if name.startswith("transformer_blocks.")})
    if blocks != config.depth:
        raise BadCheckpoint(
            f"holds {blocks} blocks", file=folder, expected=f"{config.depth} (num_layers)"
        )
    left = dict(state)
    missing: list[str] = []

    def take(name: str) -> Tensor:
        if name not in left:
            missing.append(name)
            return torch.empty(0)
        return left.pop(name)

    ours = {name: take(theirs) for name, theirs in _one_to_one(config.depth).items()}
    differing: list[str] = []
    for name, theirs in _EMBEDDERS.items():
        copies = [take(f"transformer_blocks.{i}.{theirs}") for i in range(config.depth)]
        ours[name] = copies[0]
        differing += [
            f"transformer_blocks.{i}.{theirs}"
            for i, copy in enumerate(copies)
            if not torch.equal(copy, copies[0])
        ]
    for i in range(config.depth):
        for kind in ("weight", "bias"):
            parts = [take(f"transformer_blocks.{i}.{part}.{kind}") for part in _QKV]
            if not missing:
                ours[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    if missing or left:
        kinds = (("missing", missing), ("unexpected", sorted(left)))
        told = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names)
        raise BadCheckpoint(f"other tensors than its configuration says: {told}", file=folder)
    if differing:
        raise BadCheckpoint(
            f"the embedders differ between blocks, where a DiT has one: {listed(differing)}",
            file=folder,
        )
    patches = ours["x_embedder.proj.weight"]
    if patches.shape[0] != config.hidden_size:
        raise BadCheckpoint(
            f"tensors of width {patches.shape[0]}", file=folder, expected=f"{config.hidden_size}"
        )
    table = position_table(*config.grid, config.hidden_size)[None]
    return {"pos_embed": table.to(patches.dtype), **ours}


# ---- writing ----


def export_diffusers(
    weights: ModelWeights,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
) -> tuple[str, ...]:
    """Write a model folder that `DiTTransformer2DModel.from_pretrained` loads, into `folder`.

    Returns:
        What the format cannot carry, as sentences a person should read.

    Raises:
        BadConfig: diffusers cannot express the network (not square, another MLP ratio, no null
            class).
        ResourceError: the folder cannot be written.
    """
    config = weights.config
    theirs = _their_config(config)
    state = _to_diffusers(weights.state, config.depth)
    metadata = {SHIFT_KEY: str(config.frequency_shift)}
    save_weights(Path(folder) / WEIGHTS_FILE, state, dtype=dtype, metadata=metadata)
    text = json.dumps(theirs.model_dump(by_alias=True, exclude_none=True), indent=2)
    (Path(folder) / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    notes = list(table_note(config, weights.state))
    if notes:
        notes = [f"{notes[0]}, and diffusers will use the formula"]
    if config.frequency_shift == 0:
        notes.append(
            "diffusers embeds timesteps with another divisor (127) than these weights were trained "
            "with (128); load the folder with ditscope.model.diffusers_format.load_in_diffusers to "
            "get the same pictures"
        )
    return tuple(notes)


def load_in_diffusers(folder: str | os.PathLike[str]) -> DiTTransformer2DModel:
    """A diffusers model that computes what our model does, from an exported folder, in float32.

    It is `from_pretrained` plus the sinusoid that the weights were made for.
    """
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    header = read_header(Path(folder) / WEIGHTS_FILE)
    model: Any = DiTTransformer2DModel.from_pretrained(
        os.fspath(folder), use_safetensors=True, local_files_only=True
    )
    if header.metadata.get(SHIFT_KEY) == "0":
        for block in model.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    return model


def _their_config(config: DiTConfig) -> DiffusersConfig:
    height, width = config.input_height, config.input_width
    obstacles = {
        "input_size": height != width and f"{height} x {width} is not square",
        "mlp_ratio": config.mlp_ratio != 4 and f"{config.mlp_ratio} is not 4",
        "class_dropout_prob": config.class_dropout_prob == 0 and "0 leaves no null class",
    }
    for field, problem in obstacles.items():
        if problem:
            raise BadConfig(f"{problem}; diffusers' DiT cannot express that", field=field)
    return DiffusersConfig(
        _class_name="DiTTransformer2DModel",
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_width,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=height,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=config.mlp_norm_eps,
    )


def _to_diffusers(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    theirs = {name: state[ours] for ours, name in _one_to_one(depth).items()}
    for i in range(depth):
        for ours, name in _EMBEDDERS.items():
            theirs[f"transformer_blocks.{i}.{name}"] = state[ours]
        for kind in ("weight", "bias"):
            parts = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            for name, tensor in zip(_QKV, parts, strict=True):
                theirs[f"transformer_blocks.{i}.{name}.{kind}"] = tensor
    return theirs
