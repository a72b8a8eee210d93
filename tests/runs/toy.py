"""A tiny recording made in numpy: real attention of random Q and K, and what a run keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
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
from ditscope.runs.writer import RunWriter

BOTH, COND = ("cond", "uncond"), ("cond",)


def manifest_of(
    *,
    steps=3,
    samples=2,
    layers=2,
    heads=2,
    grid=(2, 3),
    width=4,
    branches=lambda step: BOTH,
    **fields,
) -> RunManifest:
    """A manifest of these sizes; `branches` of a step; other fields as they are given."""
    fields = {
        "latent_shape": (3, 4, 6),
        "statistics": ("entropy", "rms_distance", "received_max"),
        "qk_steps": (1,),
        "qk_dtype": "float32",
        "scales": (0.5,) * layers,
        **fields,
    }
    if not fields["qk_steps"]:
        fields |= {"qk_dtype": None, "scales": ()}
    tokens = TokenGrid(height=grid[0], width=grid[1])
    return RunManifest(
        created="2026-01-01T00:00:00Z",
        versions={"ditscope": "0.1.0"},
        model=ModelRecord(
            name="toy",
            source="toy",
            weights_sha256="0" * 64,
            config={},
            process={"kind": "flow"},
            codec={"kind": "rgb"},
            dtype="float32",
            device="cpu",
            parameters=1,
        ),
        labels=tuple(LabelRecord(index=i, name=f"class {i}") for i in range(samples)),
        seed=0,
        sample_seeds=tuple(range(samples)),
        batches=(tuple(range(samples)),),
        sampler=SamplerRecord(name="euler", steps=steps),
        guidance=GuidanceRecord(scale=3.0, null_label=9),
        steps=tuple(
            StepRecord(
                index=i,
                solver_step=i,
                evaluation=0,
                timestep=1000 * (1 - i / steps),
                noise_level=1 - i / steps,
                branches=branches(i),
            )
            for i in range(steps)
        ),
        sites=tuple(
            Site(
                index=i,
                name=f"blocks.{i}.attn",
                heads=heads,
                queries=tokens.count,
                keys=tokens.count,
                head_width=width,
                grid=tokens,
            )
            for i in range(layers)
        ),
        **fields,
    )


@dataclass
class Toy:
    """The numbers of one recording. Axes of q, k, lse: (branch, sample, head, token, ...)."""

    manifest: RunManifest
    seed: int = 0
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        manifest, samples = self.manifest, len(self.manifest.labels)
        shape = (samples, *manifest.latent_shape)
        self.latents = [self._normal(shape) for _ in manifest.steps]
        self.final = self._normal(shape)
        self.images = self.random.integers(0, 256, (samples, 8, 12, 3), dtype=np.uint8)
        self.stats = [
            {name: self._uniform(step) for name in manifest.statistics} for step in manifest.steps
        ]
        self.qk = {
            (step, layer): self._operands(manifest.steps[step], manifest.sites[layer])
            for step in manifest.qk_steps
            for layer in range(len(manifest.sites))
        }

    def _normal(self, shape):
        return self.random.standard_normal(shape, dtype=np.float32)

    def _uniform(self, step):
        sites = self.manifest.sites
        heads = max(site.heads for site in sites)
        shape = (len(step.branches), len(self.manifest.labels), len(sites), heads)
        return self.random.uniform(0.1, 0.9, shape).astype(np.float32)

    def _operands(self, step, site):
        lead = (len(step.branches), len(self.manifest.labels), site.heads)
        q = self._normal((*lead, site.queries, site.head_width)) * 2
        k = self._normal((*lead, site.keys, site.head_width)) * 2
        if self.manifest.qk_dtype == "bfloat16":
            bits = [(part.view(np.uint32) >> 16).astype(np.uint16) for part in (q, k)]
            q, k = (part.astype(np.uint32).__lshift__(16).view(np.float32) for part in bits)
        elif self.manifest.qk_dtype == "float16":
            bits = [part.astype(np.float16) for part in (q, k)]
            q, k = (part.astype(np.float32) for part in bits)
        else:
            bits = [q, k]
        scores = (
            self.manifest.scales[site.index] * q.astype(float) @ k.astype(float).swapaxes(-1, -2)
        )
        lse = np.log(np.exp(scores).sum(-1))
        probabilities = np.exp(scores - lse[..., None])
        return (*bits, lse.astype(np.float32)), probabilities

    def probabilities(self, step, layer, branch, sample):
        """Attention in float64, (head, query, key)."""
        order = self.manifest.steps[step].branches.index(branch)
        return self.qk[step, layer][1][order, sample]

    def write_step(self, writer: RunWriter, step: int) -> None:
        writer.write_step(step, self.latents[step], self.stats[step])
        if step in self.manifest.qk_steps:
            for layer in range(len(self.manifest.sites)):
                writer.write_qk(step, layer, *self.qk[step, layer][0])
        writer.commit_step(step)

    def write_end(self, writer: RunWriter) -> None:
        writer.write_final(self.final)
        for sample, pixels in enumerate(self.images):
            writer.write_image(sample, pixels)
        writer.complete()

    def write(self, path: Path, *, steps: int | None = None, overwrite: bool = False) -> Path:
        """Write the whole run, or only its first `steps` steps."""
        with RunWriter(path, self.manifest, overwrite=overwrite) as writer:
            for step in range(len(self.manifest.steps) if steps is None else steps):
                self.write_step(writer, step)
            if steps is None:
                self.write_end(writer)
        return path
