"""A pipeline small enough to draw with in a moment."""

import pytest

LABELS = ("dog face", "owl", "castle", "rocket")


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A pipeline folder: 8 x 8 RGB pictures, a 4 x 4 grid, 2 layers of 2 heads, random weights."""
    import torch

    from ditscope.core.pipeline_config import WEIGHTS_FILE, PipelineConfig, write_pipeline_config
    from ditscope.model.config import DiTConfig
    from ditscope.model.dit import DiT
    from ditscope.model.weights import save_weights

    config = DiTConfig(
        input_size=8,
        in_channels=3,
        hidden_size=32,
        depth=2,
        num_heads=2,
        num_classes=len(LABELS),
        learn_sigma=False,
    )
    draw = torch.Generator().manual_seed(0)
    state = DiT(config).state_dict()
    for name, tensor in state.items():
        if name != "pos_embed":
            tensor.normal_(std=0.1, generator=draw)
    folder = tmp_path_factory.mktemp("pipeline")
    save_weights(folder / WEIGHTS_FILE, state)
    write_pipeline_config(
        folder,
        PipelineConfig(
            model=config.model_dump(mode="json"),
            process={"kind": "flow"},
            codec={"kind": "rgb"},
            labels=LABELS,
        ),
    )
    return folder
