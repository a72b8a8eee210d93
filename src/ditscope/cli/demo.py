"""`ditscope demo`: the main job on the bundled model, from nothing to pictures of its attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ditscope.cli.console import messages, results

CLASSES = (
    "dog face",
    "castle",
    "sailboat",
    "sunflower",
    "automobile",
    "owl",
    "strawberry",
    "rocket",
)
STEPS = 50
QK_STEPS = 5


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; an older run is replaced.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Every sample's noise follows from it.")] = 0,
) -> None:
    """Draw eight pictures and record every attention head of every layer at every step."""
    from ditscope.cli.sample import check_out, record, show
    from ditscope.pipeline import load

    out.parent.mkdir(parents=True, exist_ok=True)
    check_out(out, overwrite=True)
    pipe = load("emoji")
    config = pipe.model.config
    messages().print(
        f"drawing {len(CLASSES)} pictures in {STEPS} steps, guidance {pipe.defaults.cfg_scale:g}, "
        f"recording {config.depth} layers x {config.num_heads} heads x 2 branches"
    )
    labels = [pipe.labels.index(name) for name in CLASSES]
    run, pictures = record(pipe, labels, out, True, QK_STEPS, {"steps": STEPS, "seed": seed})
    show(run, pictures, as_json=False)
    results().print(
        "          ditscope sample --class owl --cfg-scale 4.0 --attention-debug\n"
        f"          python -c \"import ditscope as ds; print(ds.open_run('{out}').attention("
        'layer=5, head=2, step=37, query=(7, 9)))"'
    )
