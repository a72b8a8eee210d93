"""What one look at the attention of a run costs: one query, all heads of a layer, 1024 tokens.

The run has the shape of DiT-XL/2 (16 heads of 72, both branches, bfloat16). Cold is the first query
of a layer, with reading, digest, unpacking and widening; warm is any later one.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from ditscope.core.manifest import (
    GuidanceRecord,
    LabelRecord,
    ModelRecord,
    RunManifest,
    SamplerRecord,
    StepRecord,
)
from ditscope.core.sites import Site, TokenGrid
from ditscope.runs.reader import open_run
from ditscope.runs.writer import RunWriter

SIDE, HEADS, WIDTH, LAYERS = 32, 16, 72, 6


def manifest() -> RunManifest:
    """One step of a run that keeps Q and K of every layer."""
    grid = TokenGrid(height=SIDE, width=SIDE)
    tokens = {"queries": grid.count, "keys": grid.count, "heads": HEADS, "head_width": WIDTH}
    return RunManifest(
        created="2026-01-01T00:00:00Z",
        versions={},
        model=ModelRecord(
            name="XL/2",
            source="random",
            weights_sha256="0" * 64,
            config={},
            process={},
            codec={},
            dtype="bfloat16",
            device="cpu",
            parameters=1,
        ),
        labels=(LabelRecord(index=0, name="0"),),
        seed=0,
        sample_seeds=(0,),
        batches=((0,),),
        sampler=SamplerRecord(name="euler", steps=1),
        guidance=GuidanceRecord(scale=4.0, null_label=1),
        steps=(
            StepRecord(
                index=0,
                solver_step=0,
                evaluation=0,
                timestep=999,
                noise_level=1,
                branches=("cond", "uncond"),
            ),
        ),
        latent_shape=(4, 2 * SIDE, 2 * SIDE),
        sites=tuple(Site(index=i, name=f"blocks.{i}", grid=grid, **tokens) for i in range(LAYERS)),
        statistics=(),
        qk_steps=(0,),
        qk_dtype="bfloat16",
        scales=(WIDTH**-0.5,) * LAYERS,
    )


def write(path: Path) -> None:
    """A run with random Q and K and the log-sum-exp that belongs to them."""
    random, about = np.random.default_rng(0), manifest()
    with RunWriter(path, about) as writer:
        writer.write_step(0, np.zeros((1, *about.latent_shape), np.float32), {})
        for layer in range(LAYERS):
            bits, wide = [], []
            for _ in "qk":
                values = random.standard_normal((2, 1, HEADS, SIDE * SIDE, WIDTH), np.float32)
                bits.append((values.view(np.uint32) >> 16).astype(np.uint16))
                wide.append((bits[-1].astype(np.uint32) << 16).view(np.float32))
            scores = WIDTH**-0.5 * wide[0] @ wide[1].swapaxes(-1, -2)
            lse = np.log(np.exp(scores).sum(-1, dtype=np.float64)).astype(np.float32)
            writer.write_qk(0, layer, *bits, lse)
        writer.commit_step(0)


def main(pairs: int) -> None:
    """Print the milliseconds of a cold and of a warm query, of the clock and of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "run")
        times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
        open_run(Path(folder) / "run", allow_partial=True).attention(0, "all", 0, (0, 0))
        for _ in range(pairs):
            run = open_run(Path(folder) / "run", allow_partial=True)
            for layer in range(LAYERS):
                for kind, query in (("cold", (3, 4)), ("warm", (20, 9))):
                    started = time.perf_counter(), time.process_time()
                    run.attention(layer, "all", 0, query)
                    ended = time.perf_counter(), time.process_time()
                    times[kind].append((ended[0] - started[0], ended[1] - started[1]))
        for kind, found in times.items():
            clock, processor = ([1000 * each for each in row] for row in zip(*found, strict=True))
            print(
                f"  one query, all heads of a layer, {SIDE * SIDE} tokens, {kind}: "
                f"{statistics.median(clock):.1f} ms ({min(clock):.1f} to {max(clock):.1f}), "
                f"processor {statistics.median(processor):.1f} ms"
            )
