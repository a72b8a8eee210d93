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
    "fox",
    "strawberry",
    "hamburger",
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
    from ditscope.cli.sample import gallery, record, show
    from ditscope.pipeline import load
    from ditscope.runs.target import check_target
    from ditscope.sampling.job import make_job

    out.parent.mkdir(parents=True, exist_ok=True)
    check_target(out, overwrite=True)
    pipe = load("emoji")
    config = pipe.model.config
    messages().print(
        f"drawing {len(CLASSES)} pictures in {STEPS} steps, guidance {pipe.defaults.cfg_scale:g}, "
        f"recording {config.depth} layers x {config.num_heads} heads x 2 branches"
    )
    job = make_job(pipe, CLASSES, {"steps": STEPS, "seed": seed}).keeping_qk(QK_STEPS)
    run = record(job, out, overwrite=True)
    show(run, gallery(run), as_json=False)
    results().print(
        "          ditscope sample --class owl --cfg-scale 4.0 --attention-debug\n"
        f"          python -c \"import ditscope as ds; print(ds.open_run('{out}').attention("
        'layer=5, head=2, step=37, query=(7, 9)))"'
    )
