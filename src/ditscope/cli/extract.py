"""`ditscope extract`: pictures through an autoencoder once, for all trainings to come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ditscope.cli.console import messages, print_json, progress, results


def extract(
    out: Annotated[Path, typer.Option(help="Folder of the latents; given again, it goes on.")],
    autoencoder: Annotated[
        Path, typer.Option(help="AutoencoderKL folder of diffusers, such as a pipeline's vae.")
    ],
    data: Annotated[
        str, typer.Option(metavar="emoji|FOLDER", help="Pictures, in a folder per class.")
    ],
    image_size: Annotated[
        str, typer.Option(metavar="SIDE|HxW", help="Pixels, before the autoencoder.")
    ] = "256",
    mirror: Annotated[
        bool, typer.Option(help="Also the latents of the mirrored pictures: twice the space.")
    ] = True,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="float16 takes half the space.")
    ] = "float32",
    num_pictures: Annotated[int | None, typer.Option(help="Of emoji scenes: how many.")] = None,
    seed: Annotated[int, typer.Option(help="Of emoji scenes.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    max_bad: Annotated[
        int, typer.Option(min=0, help="Unreadable pictures that may be left out.")
    ] = 100,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Store mean and standard deviation of the latents of pictures, to train on.

    A training draws a new latent from them in every epoch.
    """
    from ditscope.core.atomic import file_sha256
    from ditscope.core.pipeline_config import AUTOENCODER_FILES
    from ditscope.data.codecs import autoencoder_codec
    from ditscope.data.extract import SHARD_PICTURES, Extraction
    from ditscope.data.extract import extract as write_latents
    from ditscope.data.listing import EMOJI, listing
    from ditscope.pipeline import checked_device
    from ditscope.train.request import sides

    size = sides(image_size)
    codec = autoencoder_codec(autoencoder.resolve())
    place = data if data == EMOJI else str(Path(data).resolve())
    found = listing(place, size, num_pictures=num_pictures, seed=seed)
    what = Extraction(
        data=place,
        data_digest=found.digest,
        class_names=found.class_names,
        image_size=size,
        views=2 if mirror else 1,
        dtype=dtype,
        codec=codec.config,
        autoencoder_sha256=file_sha256(autoencoder / AUTOENCODER_FILES[1]),
        shard_pictures=SHARD_PICTURES,
    )
    with progress() as bar:
        task = bar.add_task("encoding", total=found.total)
        manifest = write_latents(
            what,
            found.pictures,
            codec,
            out,
            device=checked_device(device),
            max_bad=max_bad,
            report=lambda done: bar.update(task, completed=done),
        )
    for name, why in manifest.left_out:
        messages().print(f"warning: left out {name}: {why}")
    channels, height, width = manifest.shape
    if json:
        print_json(
            {
                "latents": str(out),
                "pictures": manifest.count,
                "left_out": len(manifest.left_out),
                "shape": manifest.shape,
                "views": what.views,
                "shards": len(manifest.shards),
                "bytes": sum(shard.size for shard in manifest.shards),
            }
        )
        return
    results().print(
        f"latents   {out}  ({manifest.count:,} pictures, {channels} x {height} x {width}, "
        f"{sum(shard.size for shard in manifest.shards) / 1e6:,.1f} MB)\n"
        f"next      ditscope train --data {out} --model DiT-S/2 --out trainings/latents"
    )
