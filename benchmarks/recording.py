"""What recording costs: sampling DiT-XL/2 with the statistics of every head against sampling alone.

The ratio is of whole runs, from noise to files on disk, taken in turn; the memory is the growth of
the peak of a fresh process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.paired import paired
from ditscope.data.codecs import Latent, LatentCodec
from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.model.dit import build
from ditscope.pipeline import Defaults, Pipeline
from ditscope.sampling.draw import sample

STEPS = {32: 20, 64: 6}  # by side of the latent; what a run costs once, 1 s of hashing, is in them
MEMORY_STEPS = (4, 16)


def pipeline(side: int, variant: str = "DiT-XL/2", dtype: str = "bfloat16") -> Pipeline:
    """A DiT with random weights, on latents of `side` x `side`."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = build(variant, input_size=side)
    model = model.to(getattr(torch, dtype)).to_empty(device="cpu").eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    labels = tuple(str(index) for index in range(1000))
    return Pipeline(
        name=variant,
        source="random",
        weights=None,
        model=model,
        process=DDPMProcess(),
        codec=LatentCodec(Latent(), None),
        labels=labels,
        defaults=Defaults(),
    )


def draw(pipe: Pipeline, steps: int, *, recorded: bool) -> None:
    """One picture with guidance, recorded into a temporary folder or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run" if recorded else None
        sample(pipe, [1], record=record, steps=steps, cfg_scale=4.0)


def main(pairs: int) -> None:
    """Print the ratios at 256 and 1024 tokens, and the memory at 256."""
    for side, steps in STEPS.items():
        pipe = pipeline(side)
        found = paired(
            {
                f"XL/2 bfloat16, {side * side // 4} tokens: sampling": lambda p=pipe, n=steps: draw(
                    p, n, recorded=False
                ),
                "  with statistics of every head": lambda p=pipe, n=steps: draw(
                    p, n, recorded=True
                ),
            },
            pairs,
        )
        for ratio in found:
            print(f"  {ratio.line()}")
    for steps in MEMORY_STEPS:
        plain, recorded = (_peak(steps, recorded) for recorded in (False, True))
        print(f"  extra peak memory, {steps} steps: {(recorded - plain) / 2**20:.0f} MiB")


def _peak(steps: int, recorded: bool) -> int:
    return peak_of(
        "from benchmarks.recording import draw, pipeline; "
        f"draw(pipeline(32), {steps}, recorded={recorded})"
    )


def peak_of(code: str) -> int:
    """Peak resident bytes of a fresh process that runs `code`."""
    code = f"{code}\nfrom pathlib import Path\nprint(Path('/proc/self/status').read_text())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    # Not getrusage: there a child begins with the peak of the process that started it.
    peak = next(line for line in done.stdout.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
