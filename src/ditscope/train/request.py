"""From what a command says to a whole configuration.

Later ones go before earlier ones: the preset, the weights to begin with, the recipe file, the
options for data, model and objective, the options for single settings, `--set`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ditscope.core.bundled import BUNDLED
from ditscope.core.strict_json import read, validated
from ditscope.core.variants import variant
from ditscope.data.classes import STYLES
from ditscope.data.latents import MANIFEST, LatentFolder
from ditscope.data.listing import EMOJI
from ditscope.data.pictures import PictureFolder
from ditscope.data.records import (
    HUB,
    RecordSettings,
    is_records,
    open_records,
    records_digest,
)
from ditscope.data.scenes import EmojiScenes
from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.diffusion.flow import FlowProcess
from ditscope.errors import BadConfig, BadRequest, foreign
from ditscope.model.config import DiTConfig
from ditscope.pipeline import default_dtype
from ditscope.train.config import TrainConfig
from ditscope.train.folder import CONFIG
from ditscope.train.heads import choose_heads
from ditscope.train.placing import AUTO, device_kind
from ditscope.train.presets import DEFAULT, OBJECTIVES, PRESETS, named
from ditscope.train.recipe import read_toml
from ditscope.train.start import Start, read_start

IMAGE_SIZE = 64
"""Side of the pictures in pixels, unless said."""

Tree = dict[str, object]


@dataclass(frozen=True)
class Request:
    """What a command says. None and empty: not said."""

    recipe: Path | None = None
    preset: str | None = None
    data: str | None = None  # "emoji" or a folder
    model: str | None = None  # a published variant, or a TOML file with fields of DiTConfig
    image_size: str | None = None  # "64" or "48x64", height first
    heads: str | None = None  # a number or "auto"
    objective: str | None = None
    init: str | None = None  # weights to begin with: a pipeline, or a training
    single: Mapping[str, object] = field(default_factory=dict)  # top-level fields
    settings: Sequence[str] = ()  # "learning_rate=2e-4", "model.depth=6"
    folder: Path | None = None  # where it trains; a training in it keeps its number type
    device: str = AUTO  # what computes


def resolve(request: Request) -> tuple[TrainConfig, list[str]]:
    """The whole configuration, and sentences about what was chosen for the user.

    Raises:
        BadConfig: a file that cannot be read, an unknown field (with the nearest name), or a value
            of the wrong type or out of range.
        BadRequest: an unknown preset, objective, variant or a malformed option.
        BadDataset: a folder that holds no data.
        BadCheckpoint: weights to begin with that cannot be read.
    """
    start = None if request.init is None else read_start(request.init)
    tree = _said(request, start)
    notes: list[str] = []
    if "precision" not in tree:
        tree["precision"], why = _precision(request.folder, request.device)
        notes += why
    model = _part(tree, "model")
    if not model:
        raise BadConfig(
            "no network is named",
            field="model",
            fix="--model takes a published size, such as DiT-S/4, or a TOML file; --init and a "
            "recipe bring one too",
        )
    process = _part(tree, "process")
    tree["process"] = process or (process := dict(OBJECTIVES["ddpm"]))
    if request.image_size is not None:
        model["input_size"] = _image_size(request.image_size)
    model.setdefault(
        "learn_sigma", process.get("kind") == "ddpm" and process.get("learn_sigma", True)
    )
    distinct = _describe_data(tree, model, () if start is None else start.labels)
    if request.heads == "auto":
        if distinct is None:
            raise BadRequest(
                "the number of pictures of this stream is not known",
                field="heads",
                expected="a number",
            )
        width = validated(DiTConfig, {**model, "num_heads": 1}, field="model").hidden_size
        model["num_heads"], why = choose_heads(width, distinct)
        notes.append(why)
    elif request.heads is not None:
        model["num_heads"] = _value(request.heads)
    validated(DiTConfig, model, file=request.recipe, field="model")
    kind = FlowProcess if process.get("kind") == "flow" else DDPMProcess
    validated(kind, process, file=request.recipe, field="process")
    return validated(TrainConfig, tree, file=request.recipe), notes


def _said(request: Request, start: Start | None) -> Tree:
    """All layers put over each other; nothing is checked yet."""
    preset = request.preset or (None if request.recipe else DEFAULT)
    tree = named("preset", PRESETS, preset) if preset else {}
    if start is not None:
        network = start.model.model_dump(mode="json", exclude={"num_classes"})
        tree |= {"model": network, "process": start.process, "init_digest": start.digest}
        place = str(request.init)
        tree["init"] = place if place in BUNDLED else str(Path(place).resolve())
    if request.recipe is not None:
        tree |= read_toml(request.recipe)
    if request.data is not None:
        is_name = request.data == EMOJI or request.data.startswith(HUB)
        tree["data"] = request.data if is_name else str(Path(request.data).resolve())
    if request.model is not None:
        tree["model"] = _model(request.model)
    if request.objective is not None:
        tree["process"] = named("objective", OBJECTIVES, request.objective)
    tree |= request.single
    for setting in request.settings:
        name, equals, text = setting.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", name.strip()):
            raise BadRequest(
                f"found {foreign(setting)!r}", field="set", expected="NAME=VALUE, as in a recipe"
            )
        _put(tree, name.strip().split("."), _value(text.strip()))
    return tree


def _precision(folder: Path | None, device: str) -> tuple[object, list[str]]:
    """The number type of the training in `folder`, or else the one that is fast there."""
    if folder is not None and (folder / CONFIG).is_file():
        kept = read(folder / CONFIG)
        if isinstance(kept, dict) and "precision" in kept:
            return kept["precision"], []
    if default_dtype(torch.device(device_kind(device))) == "bfloat16":
        return "bf16", []
    return "fp32", ["computing in fp32: this processor has no fast products of bf16"]


def _model(name: str) -> Tree:
    if name.endswith(".toml"):
        return read_toml(Path(name))
    found = variant(name)
    return {
        "hidden_size": found.hidden_size,
        "depth": found.depth,
        "num_heads": found.num_heads,
        "patch_size": found.patch_size,
    }


def _part(tree: Tree, name: str) -> Tree:
    """A table of the tree, as a copy that may be filled up."""
    part = tree.get(name, {})
    if not isinstance(part, dict):
        raise BadConfig(f"found {foreign(repr(part))}", field=name, expected="a table")
    tree[name] = own = dict(part)
    return own


def _put(tree: Tree, path: list[str], value: object) -> None:
    *tables, last = path
    for name in tables:
        tree = _part(tree, name)
    tree[last] = value


def _value(text: str) -> object:
    """A value as TOML writes it; words need no quotes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        json.dumps(value)  # a date is a word here
    except (tomllib.TOMLDecodeError, TypeError, RecursionError):
        return text
    return value


def sides(text: str) -> tuple[int, int]:
    """Height and width from "64" or "48x64". Raises BadRequest."""
    if not re.fullmatch("[0-9]{1,5}(x[0-9]{1,5})?", text):
        raise BadRequest(
            f"found {foreign(text)!r}", field="image_size", expected="64, or HEIGHTxWIDTH: 48x64"
        )
    height, *width = (int(side) for side in text.split("x"))
    return height, width[0] if width else height


def _image_size(text: str) -> int | list[int]:
    found = sides(text)
    return list(found) if "x" in text else found[0]


def _describe_records(data: str, tree: Tree, model: Tree) -> tuple[tuple[str, ...], int | None]:
    """Class names and number of pictures of a `datasets` source; which version of it is meant."""
    settings = validated(RecordSettings, tree.get("records", {}), field="records")
    said, count = tree.get("labels"), model.get("num_classes")
    names = tuple(str(name) for name in said) if isinstance(said, list | tuple) else ()
    if not names and isinstance(count, int):
        names = tuple(str(number) for number in range(count))
    if not (data.startswith(HUB) and tree.get("data_digest")):  # a commit may be asked for
        tree["data_digest"] = records_digest(data)
    source = open_records(data, settings, revision=str(tree["data_digest"]), class_names=names)
    return source.columns.class_names, source.count()


def _describe_data(tree: Tree, model: Tree, known: tuple[str, ...]) -> int | None:
    """Fill in what the data decides; how many different pictures there are, if that is known.

    Classes that are `known` keep their labels, new ones follow. Of the emoji scenes as many
    classes are shown as `num_classes` has room for.
    """
    data, room = tree.setdefault("data", EMOJI), model.get("num_classes")
    room = room if data == EMOJI and isinstance(room, int) else None
    if data == EMOJI:
        names = EmojiScenes.class_names[: None if known else room]
        distinct = len(names) * len(STYLES)
    elif (Path(str(data)) / MANIFEST).is_file():
        latents = LatentFolder(str(data))
        names, distinct = latents.class_names, len(latents)
        tree["data_digest"] = latents.digest()
        tree["codec"] = latents.codec.model_dump(mode="json")
        channels, *grid = latents.manifest.shape
        model.setdefault("in_channels", channels)
        model.setdefault("input_size", grid)
    elif is_records(str(data)):
        names, distinct = _describe_records(str(data), tree, model)
    else:
        folder = PictureFolder(str(data), size=(1, 1))
        names, distinct = folder.class_names, len(folder)
        tree["data_digest"] = folder.digest()
    if known or data != EMOJI:
        labels = [*known, *(name for name in names if name not in known)][:room]
        tree.setdefault("labels", labels)
        model.setdefault("num_classes", len(labels))
    else:
        model.setdefault("num_classes", len(names))
    model.setdefault("input_size", IMAGE_SIZE)
    model.setdefault("in_channels", 3)
    return distinct
