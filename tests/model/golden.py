"""Reading the numbers of tests/golden that belong to the model, and small models to test with."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ditscope.model.config import DiTConfig
from ditscope.model.dit import DiT

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("dit_small_patch2", "dit_small_patch4_nosigma")
TABLES = json.loads((GOLDEN / "dit_tables.json").read_text())

TINY = DiTConfig(input_size=4, hidden_size=16, depth=2, num_heads=2, num_classes=3)


def tensors(name):
    return load_file(GOLDEN / f"{name}.safetensors")


def config(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return DiTConfig(**json.loads(file.metadata()["config"]))


def weights(name):
    prefix = "weights."
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors(name).items()
        if key.startswith(prefix)
    }


def model(name):
    network = DiT(config(name))
    network.load_state_dict(weights(name), strict=True)
    return network.eval()


def randomised(settings, seed=0):
    """A model whose every weight is random, those that start at zero too; the table is kept."""
    network = DiT(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "pos_embed":
                parameter.normal_(std=0.05, generator=generator)
    return network.eval()


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())
