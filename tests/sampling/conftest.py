"""A tiny pipeline on disk, so that everything from `load` to a replay is the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ditscope.core.pipeline_config import WEIGHTS_FILE, PipelineConfig, write_pipeline_config
from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT
from ditscope.model.weights import save_weights

LABELS = ("ant", "bee", "cat", "dog", "eel")
TINY = {
    "input_size": (8, 12),
    "patch_size": 2,
    "in_channels": 3,
    "hidden_size": 24,
    "depth": 3,
    "num_heads": 2,
    "num_classes": len(LABELS),
}
PROCESSES = {
    "flow": {"kind": "flow", "prediction": "x"},
    "ddpm": {"kind": "ddpm", "learn_sigma": True},
}


def write_pipeline(folder: Path, kind: str, seed: int = 0, **network: object) -> Path:
    """A pipeline folder with random weights, none of them zero."""
    torch.manual_seed(seed)
    config = DiTConfig.model_validate({**TINY, "learn_sigma": kind == "ddpm", **network})
    model = DiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.15)
    folder.mkdir()
    save_weights(folder / WEIGHTS_FILE, model.state_dict())
    described = PipelineConfig(
        model=config.model_dump(mode="json"),
        process=dict(PROCESSES[kind]),
        codec={"kind": "rgb"},
        labels=LABELS,
        defaults={"steps": 4, "cfg_scale": 2.0},
    )
    write_pipeline_config(folder, described)
    return folder


@pytest.fixture(params=sorted(PROCESSES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pipeline folder of either kind of process."""
    return write_pipeline(tmp_path / "pipeline", request.param)


@pytest.fixture
def flow_folder(tmp_path: Path) -> Path:
    """A pipeline folder of a flow."""
    return write_pipeline(tmp_path / "flow", "flow")
