"""`ditscope models`: the bundled models and the published variants, and what they cost."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

import typer

from ditscope.cli.console import print_json, print_table, results

BILLION = 1e9
SOURCES = (
    "source: authors = stated in the authors' repository; summaries = quoted alike by public "
    "summaries of the paper; bundled = comes with ditscope"
)


def models(
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """List the published DiT variants and the bundled models: sizes, cost, published quality.

    `GMAC` is billions of multiply-adds of one forward of one 256 px picture, or of one picture of
    a bundled model. The paper prints the same numbers as "Gflops".
    """
    from ditscope.core.variants import PUBLISHED_FID_PROTOCOL

    rows = [*_bundled(), *_published()]
    if json:
        print_json({"fid_protocol": PUBLISHED_FID_PROTOCOL, "models": rows})
        return
    columns = ("model", "width", "depth", "heads", "patch", "parameters", "GMAC", "FID", "source")
    print_table(columns, [_cells(row) for row in rows])
    notes = [f"{row['name']}: {row['note']}" for row in rows if row.get("note")]
    explained = ["", f"FID: {PUBLISHED_FID_PROTOCOL}.", SOURCES, *notes]
    results().print("\n".join(explained))


def _published() -> list[dict[str, object]]:
    from ditscope.core.variants import VARIANTS

    return [
        {
            "name": name,
            "bundled": False,
            "hidden_size": found.hidden_size,
            "depth": found.depth,
            "num_heads": found.num_heads,
            "patch_size": found.patch_size,
            "parameters": found.architecture().parameters,
            "trainable_parameters": found.architecture().trainable_parameters,
            "multiply_adds": found.architecture().multiply_adds,
            "fid": found.fid,
            "source": found.fid_evidence,
            "note": found.note,
        }
        for name, found in VARIANTS.items()
    ]


def _bundled() -> list[dict[str, object]]:
    from ditscope.core import strict_json
    from ditscope.core.pipeline_config import CONFIG_FILE, read_pipeline_config
    from ditscope.model.config import DiTConfig

    root = files("ditscope") / "bundled"
    rows = []
    for folder in sorted(root.iterdir(), key=lambda entry: entry.name) if root.is_dir() else ():
        if not (folder / CONFIG_FILE).is_file():
            continue
        pipeline = read_pipeline_config(str(folder))
        model = strict_json.validated(DiTConfig, pipeline.model, file=str(folder), field="model")
        sizes = model.architecture
        rows.append(
            {
                "name": folder.name,
                "bundled": True,
                "hidden_size": model.hidden_size,
                "depth": model.depth,
                "num_heads": model.num_heads,
                "patch_size": model.patch_size,
                "parameters": sizes.parameters,
                "trainable_parameters": sizes.trainable_parameters,
                "multiply_adds": sizes.multiply_adds,
                "fid": None,
                "source": "bundled",
                "note": "",
            }
        )
    return rows


def _cells(row: dict[str, object]) -> tuple[object, ...]:
    fid, cost = row["fid"], float(str(row["multiply_adds"])) / BILLION
    return (
        row["name"],
        row["hidden_size"],
        row["depth"],
        row["num_heads"],
        row["patch_size"],
        f"{row['parameters']:>11,}",
        f"{cost:>7.3f}",
        "" if fid is None else f"{fid:>6.2f}",
        row["source"],
    )
