"""One forward of DiT-XL/2, 256 tokens, batch 2: ours against diffusers', on the same weights."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch

from benchmarks.paired import paired
from ditscope.model.diffusers_format import export_diffusers, load_in_diffusers
from ditscope.model.dit import build
from ditscope.model.weights import ModelWeights

BATCH = 2


@torch.inference_mode()
def main(pairs: int) -> None:
    """Time both in float32 and bfloat16; the baseline is diffusers in float32."""
    torch.manual_seed(0)
    ours = build("DiT-XL/2").eval()
    for parameter in ours.parameters():  # zero gates would let a clever kernel off too easily
        if parameter.requires_grad:
            parameter.normal_(std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        export_diffusers(ModelWeights(ours.config, ours.state_dict()), Path(folder))
        peer = load_in_diffusers(Path(folder)).eval()
    x = torch.randn(BATCH, 4, 32, 32)
    t, y = torch.tensor([500, 20]), torch.tensor([1, 2])
    reference = ours(x, t, y)
    theirs = peer(x, timestep=t, class_labels=y).sample
    error = (theirs - reference).abs().max() / reference.abs().max()
    print(f"  same numbers: largest difference {error:.1e} of the largest output (float32)")
    fast, fast_peer = copy.deepcopy(ours).bfloat16(), copy.deepcopy(peer).bfloat16()
    low = x.bfloat16()
    alternatives = {
        "diffusers float32": lambda: peer(x, timestep=t, class_labels=y),
        "diffusers bfloat16": lambda: fast_peer(low, timestep=t, class_labels=y),
        "ditscope float32": lambda: ours(x, t, y),
        "ditscope bfloat16": lambda: fast(low, t, y),
    }
    for ratio in paired(alternatives, pairs):
        print(f"  {ratio.line()}")
