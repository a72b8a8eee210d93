"""A tiny pipeline, and what a run holds, so that two ways of drawing can be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sampling.conftest import write_pipeline


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A pipeline folder: 5 classes, 4 x 6 patches, 3 layers of 2 heads, random weights."""
    return write_pipeline(tmp_path_factory.mktemp("distributed") / "pipeline", "flow")


BESIDE = {"figures", "cache"}
"""What is no part of a run, though it lies in its folder."""


def contents(folder: Path) -> dict[str, object]:
    """Every file of a run with its bytes, the manifest parsed and without the time it was made."""
    found: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "COMPLETE" and path.parent.name not in BESIDE
    }
    manifest = json.loads((folder / "run.json").read_text())
    del manifest["created"]
    return {**found, "run.json": manifest}
