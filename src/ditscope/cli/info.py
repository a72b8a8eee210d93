"""`ditscope info`: what a run, a model or this installation is, without loading any weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ditscope.cli.console import MAX_LINE, print_json, results
from ditscope.cli.run_facts import Facts, repair_facts, run_facts, verification
from ditscope.errors import EXIT_BAD_INPUT, BadRequest, foreign, listed

PACKAGES = (
    "torch",
    "diffusers",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "zarr",
    "numcodecs",
    "xarray",
    "pydantic",
    "matplotlib",
    "pillow",
)
SIZE = "size"
"""Name of facts that count bytes."""


def info(
    path: Annotated[
        str | None,
        typer.Argument(help="A run, a weight file, a model folder or a bundled model."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte and number of a run.")
    ] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="With --verify: run every step of it again, too.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Keep what is whole of a run, and name what is not.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a run or a model is; without a path, what a bug report needs to know.

    Weights are not loaded and pickles are not opened. A run that fails --verify ends with exit
    code 3.
    """
    repaired = repair_facts(path) if repair else {}
    facts = environment() if path is None else describe(path)
    facts |= repaired
    if verify:
        if path is None or facts["kind"] != "run":
            raise BadRequest("only a run can be verified", file=path, field="--verify")
        facts |= verification(place_of(path), replay=replay)
    elif replay:
        raise BadRequest("is a part of --verify", field="--replay", fix="give both")
    if json:
        print_json(facts)
    else:
        for name, value in facts.items():
            for line in lines_of(name, value):
                results().print(line)
    if facts.get("problems"):
        raise typer.Exit(EXIT_BAD_INPUT)


def describe(path: str) -> Facts:
    """What is at `path`. Raises BadRequest for what is nothing of ours, BadInput if damaged."""
    from ditscope.core.pipeline_config import CONFIG_FILE
    from ditscope.runs.layout import MANIFEST
    from ditscope.runs.target import holds_run

    place = place_of(path)
    if place.name == MANIFEST and holds_run(place.parent):
        raise BadRequest(
            "is one file of a run", file=place, fix=f"give its folder: {foreign(place.parent)}"
        )
    if place.is_file():
        return file_facts(place)
    if (place / MANIFEST).exists():
        return run_facts(place)
    if (place / "model_index.json").exists() or (place / CONFIG_FILE).exists():
        return folder_facts(place)
    raise BadRequest(
        "neither a run nor a model",
        file=place,
        expected=f"a folder with {MANIFEST}, {CONFIG_FILE} or model_index.json, or a weight file",
    )


def place_of(path: str) -> Path:
    """The file or folder that `path` names: itself, or a bundled model. Raises BadRequest."""
    from importlib.resources import files

    bundled = Path(str(files("ditscope"))) / "bundled" / path
    for place in (Path(path), bundled):
        if place.exists():
            return place
    raise BadRequest("no such file, folder or bundled model", file=path)


def environment() -> Facts:
    """Versions, device and paths of this installation."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import ditscope

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "kind": "installation",
        "ditscope": ditscope.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "devices": devices(),
        "package": str(Path(ditscope.__file__).parent),
        "versions": versions,
    }


def devices() -> list[str]:
    """Where the network can run."""
    try:
        import torch
    except ImportError:
        return []
    cards = [
        f"cuda:{index} ({torch.cuda.get_device_name(index)})"
        for index in range(torch.cuda.device_count())
    ]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def file_facts(file: Path) -> Facts:
    """What the header of a weight file declares."""
    from ditscope.model.header import looks_like_pickle

    with file.open("rb") as stream:
        start = stream.read(8)
    facts: Facts = {"kind": "weights", "path": str(file)}
    if not looks_like_pickle(start):
        return facts | weights_facts([file])
    return facts | {
        "format": "pickle: not opened here",
        "size": file.stat().st_size,
        "next": f"ditscope convert {file} FOLDER",
    }


def weights_facts(files: list[Path]) -> Facts:
    """Tensors in safetensors files, counted from their headers."""
    from ditscope.core.variants import published_heads
    from ditscope.model.header import read_header

    headers = [read_header(file) for file in files]
    tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
    facts: Facts = {
        "format": "safetensors",
        "size": sum(file.stat().st_size for file in files),
        "tensors": len(tensors),
        "numbers": sum(header.elements for header in headers),
        "types": sorted({entry.dtype for entry in tensors.values()}),
    }
    patches = tensors.get("x_embedder.proj.weight")  # (D, C, p, p)
    if patches and len(patches.shape) == 4:
        width, channels, patch, _ = patches.shape
        depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        heads = published_heads(width, depth)
        facts["network"] = (
            f"DiT of width {width}, {depth} blocks of {heads or 'unknown'} heads, patch {patch}, "
            f"{channels} channels"
        )
    return facts


def folder_facts(folder: Path) -> Facts:
    """What the configuration of a model folder says, and its weights."""
    from ditscope.core import strict_json
    from ditscope.core.pipeline_config import CONFIG_FILE, FORMAT
    from ditscope.errors import BadCheckpoint

    index = folder / "model_index.json"
    config = index if index.exists() else folder / CONFIG_FILE
    tree = strict_json.read(config, error=BadCheckpoint)
    if tree.get("format") == FORMAT:
        return pipeline_facts(folder)
    if "process" in tree and "batch_size" in tree:
        return training_facts(folder, tree)
    if "_class_name" not in tree:
        raise BadRequest("is the configuration of something else", file=config)
    facts: Facts = {
        "kind": "diffusers pipeline" if index.exists() else "diffusers model",
        "path": str(folder),
        "class": foreign(tree.get("_class_name")),
        "diffusers": foreign(tree.get("_diffusers_version")),
    }
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("transformer/*.safetensors")])
    return facts | (weights_facts(weights) if weights else {"format": "no safetensors"})


def training_facts(folder: Path, config: dict[str, object]) -> Facts:
    """How far a training is; its checkpoints are named, not opened."""
    names = sorted(path.name for path in folder.glob("ckpt-*") if path.is_dir())
    whole = [name for name in names if (folder / name / "manifest.json").is_file()]
    return {
        "kind": "training",
        "path": str(folder),
        "step": int(whole[-1].removeprefix("ckpt-")) if whole else 0,
        "steps": foreign(config.get("steps")),
        "data": foreign(config.get("data")),
        "checkpoints": whole,
    }


def pipeline_facts(folder: Path) -> Facts:
    """One of our own model folders."""
    from ditscope.core import strict_json
    from ditscope.core.pipeline_config import CONFIG_FILE, WEIGHTS_FILE, read_pipeline_config
    from ditscope.errors import BadCheckpoint
    from ditscope.model.config import DiTConfig

    config = read_pipeline_config(folder)
    model = strict_json.validated(
        DiTConfig, config.model, file=folder / CONFIG_FILE, field="model", error=BadCheckpoint
    )
    weights = weights_facts([folder / WEIGHTS_FILE])
    height, width = model.grid
    return {
        "kind": "pipeline",
        "path": str(folder),
        "network": f"DiT of width {model.hidden_size}, {model.depth} blocks of {model.num_heads} "
        f"heads, {height} x {width} patches of {model.patch_size}, {model.in_channels} channels",
        "process": config.process,
        "codec": config.codec,
        "classes": list(config.labels),
        "defaults": config.defaults,
        "training": config.training,
        **{name: fact for name, fact in weights.items() if name != "network"},
    }


def lines_of(name: str, value: object) -> list[str]:
    """A fact for people: one line, or one for each problem or lost file."""
    title = f"{name.replace('_', ' '):<11} "
    if name in ("problems", "lost") and isinstance(value, list) and value:
        return [title + str(len(value)), *(foreign(problem, MAX_LINE) for problem in value)]
    return [title + text_of(name, value)]


def text_of(name: str, value: object) -> str:
    """A fact as one line of text."""
    if isinstance(value, Mapping):
        pairs = (
            f"{foreign(key)} {text_of(key if key == SIZE else name, item)}"
            for key, item in value.items()
        )
        return ", ".join(pairs) or "none"
    if isinstance(value, list):
        return listed(value) or "none"
    if isinstance(value, bool) or not isinstance(value, int) or name == "seed":
        return foreign(value)
    if name == SIZE:
        return f"{value / 1e6:,.1f} MB" if value >= 1e5 else f"{value / 1e3:,.1f} kB"
    return f"{value:,}"
