"""`ditscope convert`: weights from any known place into a folder that loads safely and at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ditscope.cli.console import messages, print_json, results

if TYPE_CHECKING:
    from ditscope.model.sources import Source


def convert(
    source: Annotated[
        Path, typer.Argument(help="A .pt or .safetensors file, or a folder: ours or diffusers'.")
    ],
    destination: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        Literal["ditscope", "diffusers"], typer.Option(help="What to write.")
    ] = "ditscope",
    num_heads: Annotated[
        int | None, typer.Option(min=1, help="Heads, for weights of an unpublished size.")
    ] = None,
    part: Annotated[
        Literal["ema", "model"] | None,
        typer.Option(help="Half of a training checkpoint. [default: ema, if it has one]"),
    ] = None,
    frequency_shift: Annotated[
        Literal[0, 1] | None,
        typer.Option(help="For diffusers weights: 0 if the original code trained them."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Number type to write. [default: that of the source]"),
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Accept weights that are NaN or infinite.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DESTINATION if this command wrote it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Convert weights between the published .pt form, diffusers' and ours.

    Pickled files are read in a child process that can build tensors and nothing else. Nothing is
    written unless every tensor fits. Weights keep their licence: those that the DiT authors
    published are CC BY-NC 4.0.
    """
    from ditscope.core.atomic import new_folder

    _check_places(source, destination, overwrite)
    from ditscope.model.sources import read_source

    with (
        new_folder(destination, replaceable=_written_names() if overwrite else None) as folder,
        messages().status("converting"),
    ):
        found = read_source(
            source,
            num_heads=num_heads,
            part=part,
            frequency_shift=frequency_shift,
            unpickle=True,
        )
        found.weights.check(file=source, allow_nonfinite=allow_nonfinite)
        write = _write_diffusers if to == "diffusers" else _write_ours
        notes = (*found.weights.notes, *write(found, source, folder, dtype))
    for note in notes:
        messages().print(f"note: {note}")
    _report(found, destination, to, notes, as_json=json)


def _check_places(source: Path, destination: Path, overwrite: bool) -> None:
    """What can be known of both paths before torch is loaded and any weight is read."""
    from ditscope.core.atomic import check_replaceable, check_space
    from ditscope.errors import BadCheckpoint, BadRequest, ResourceError

    if not source.exists():
        raise BadCheckpoint("no such file or folder", file=source)
    old, new = source.resolve(), destination.resolve()
    if old == new or old.is_relative_to(new) or new.is_relative_to(old):
        raise BadRequest("is the source, or one holds the other", file=destination)
    if not overwrite:
        check_replaceable(destination, None)
    if not new.parent.is_dir():
        raise ResourceError(
            "its parent folder does not exist", file=destination, fix=f"mkdir -p {new.parent}"
        )
    if not os.access(new.parent, os.W_OK | os.X_OK):
        raise ResourceError("its parent folder is not writable", file=destination)
    if source.is_file() and source.stat().st_size == 0:
        raise BadCheckpoint("is empty", file=source)
    check_space(new.parent, source.stat().st_size)


def _written_names() -> set[str]:
    from ditscope.core.pipeline_config import (
        AUTOENCODER,
        AUTOENCODER_FILES,
        CONFIG_FILE,
        WEIGHTS_FILE,
    )
    from ditscope.model.diffusers_format import EXPORTED_FILES

    autoencoder = {f"{AUTOENCODER}/{name}" for name in AUTOENCODER_FILES}
    return {CONFIG_FILE, WEIGHTS_FILE, *EXPORTED_FILES, *autoencoder}


def _write_ours(found: Source, source: Path, folder: Path, dtype: str | None) -> tuple[str, ...]:
    import torch

    from ditscope.core.pipeline_config import (
        AUTOENCODER_FILES,
        WEIGHTS_FILE,
        write_pipeline_config,
    )
    from ditscope.model.weights import save_weights

    kind = getattr(torch, dtype) if dtype else None
    save_weights(folder / WEIGHTS_FILE, found.weights.state, dtype=kind)
    write_pipeline_config(folder, found.config)
    autoencoder = found.config.codec.get("autoencoder")
    if autoencoder is None:
        if found.config.codec.get("kind") == "latent":
            return ("it has no autoencoder, so its latents cannot be shown as pictures",)
        return ()
    (folder / str(autoencoder)).mkdir()
    for name in AUTOENCODER_FILES:
        shutil.copyfile(source / str(autoencoder) / name, folder / str(autoencoder) / name)
    return ()


def _write_diffusers(
    found: Source, source: Path, folder: Path, dtype: str | None
) -> tuple[str, ...]:
    import torch

    from ditscope.model.diffusers_format import export_diffusers

    kind = getattr(torch, dtype) if dtype else None
    notes = export_diffusers(found.weights, folder, dtype=kind)
    named = found.config.labels != tuple(str(index) for index in range(len(found.config.labels)))
    if named:
        notes += ("class names are not part of a diffusers model folder, and are left out",)
    if found.config.process.get("kind") != "ddpm":
        process = found.config.process.get("kind")
        notes += (f"the network was trained on the {process} process; pick such a scheduler",)
    return notes


def _report(
    found: Source, destination: Path, to: str, notes: tuple[str, ...], *, as_json: bool
) -> None:
    config = found.weights.config
    if as_json:
        print_json(
            {
                "destination": str(destination),
                "format": to,
                "parameters": config.architecture.parameters,
                "model": config.model_dump(mode="json"),
                "notes": list(notes),
            }
        )
        return
    results().print(
        f"{destination}: {config.architecture.parameters:,} parameters, width {config.hidden_size},"
        f" {config.depth} blocks of {config.num_heads} heads, {config.num_classes} classes"
    )
