"""`config.json` of a pipeline folder: everything about a pipeline but its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from ditscope.core import strict_json
from ditscope.core.atomic import new_file
from ditscope.core.manifest import Record
from ditscope.errors import BadCheckpoint, foreign

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
AUTOENCODER = "vae"
AUTOENCODER_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
"""What is read of the autoencoder of a diffusers pipeline. Its pickled form is not."""

FORMAT = "ditscope-pipeline"
VERSION = 1

RUNS_CODE = frozenset(
    {"auto_map", "custom_pipeline", "custom_pipelines", "_attn_implementation_internal"}
)
"""Fields by which a configuration makes other programs run code from its repository."""


class PipelineConfig(Record):
    """What a folder says of its pipeline. Each part is checked by the package that uses it."""

    format: Literal["ditscope-pipeline"] = FORMAT
    version: Literal[1] = VERSION
    model: dict[str, object]  # DiTConfig
    process: dict[str, object]  # noise process
    codec: dict[str, object]  # pixels to latents
    labels: tuple[str, ...]  # class names by index, without the null class
    defaults: dict[str, object] = Field(default_factory=dict)  # for sampling
    training: dict[str, object] = Field(default_factory=dict)  # how the weights came about


def read_pipeline_config(folder: str | os.PathLike[str]) -> PipelineConfig:
    """The configuration of a pipeline folder.

    Raises:
        BadCheckpoint: there is none, it is damaged, of a newer version, of another kind, or has a
            field that runs code.
    """
    file = Path(folder) / CONFIG_FILE
    tree = strict_json.read(file, error=BadCheckpoint)
    refuse_code(tree, file)
    if tree.get("format") != FORMAT:
        raise BadCheckpoint(
            f"is {foreign(repr(tree.get('format')))}", file=file, field="format", expected=FORMAT
        )
    version = tree.get("version")
    if type(version) is int and version > VERSION:
        raise BadCheckpoint(
            f"made by format version {foreign(version)}, this is {VERSION}",
            file=file,
            field="version",
            fix="update ditscope to read it",
        )
    return strict_json.validated(PipelineConfig, tree, file=file, error=BadCheckpoint)


def write_pipeline_config(folder: str | os.PathLike[str], config: PipelineConfig) -> None:
    """Write `config.json` into a folder, whole or not at all. Raises ResourceError."""
    text = json.dumps(config.model_dump(mode="json"), indent=2, allow_nan=False)
    with new_file(Path(folder) / CONFIG_FILE) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def refuse_code(tree: object, file: str | os.PathLike[str]) -> None:
    """Raise BadCheckpoint if a field at any depth of `tree` is one of `RUNS_CODE`."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            for key in RUNS_CODE & node.keys():
                raise BadCheckpoint(
                    "this field makes other programs run code from the repository; refused",
                    file=file,
                    field=key,
                )
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
