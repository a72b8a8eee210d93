"""A real run directory whose attention is known: made in numpy, written by the run writer.

Every head follows a formula. Q holds the scores and K is the identity, so that the attention that
is read back is exactly the softmax of these scores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ditscope.runs.reader import Run, open_run
from ditscope.runs.writer import RunWriter
from tests.runs import toy

GRID, PATCH = (6, 8), 4
OBJECT = (slice(2, 5), slice(3, 6))  # patches; the middle is (3, 4)
LOCAL, LIKE, SINK = range(3)  # what heads 0, 1 and 2 of every layer look at


def picture(grid=GRID, patch=PATCH, sample=0):
    """An orange square on a blue sky above a green meadow, uint8."""
    image = np.empty((grid[0] * patch, grid[1] * patch, 3), np.uint8)
    image[:] = (120, 170, 230)
    image[-patch:] = (90, 160, 70)
    rows, columns = (slice(part.start * patch, part.stop * patch) for part in OBJECT)
    image[rows, columns] = (240, 130 + sample, 20)
    return image


def scores(layer, head, step, grid=GRID):
    """Scores of one head, (query, key). They grow sharper with depth and as the noise goes."""
    rows, columns = (axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]])
    apart = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    inside = np.zeros(grid, bool)
    inside[OBJECT] = True
    alike = inside.ravel()[:, None] == inside.ravel()
    sharp = 1 + layer + 0.5 * step
    if head == LOCAL:
        return -0.2 * sharp * apart
    if head == LIKE:
        return sharp * alike - 0.01 * apart
    return sharp * (np.arange(rows.size) == 0) + 0.0 * apart


def attention(layer, head, step, grid=GRID):
    """Softmax of `scores`, (query, key)."""
    weights = np.exp(scores(layer, head, step, grid))
    return weights / weights.sum(-1, keepdims=True)


def statistics(weights, grid=GRID):
    """Entropy, RMS distance and greatest received attention of one head."""
    rows, columns = (axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]])
    apart = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    return {
        "entropy": -(weights * np.log(weights)).sum(-1).mean(),
        "rms_distance": np.sqrt((weights * apart).sum(-1)).mean(),
        "received_max": weights.mean(0).max(),
    }


def late(step):
    """Guidance that starts at step 1: step 0 has no `uncond` branch."""
    return toy.BOTH if step else toy.COND


def manifest_of(
    *,
    grid=GRID,
    layers=3,
    heads=3,
    steps=4,
    samples=2,
    qk_steps=None,
    codec="rgb",
    kept=True,
    **others,
):
    """The manifest of such a run; `others` as in `toy.manifest_of`."""
    qk_steps = tuple(range(steps)) if qk_steps is None else qk_steps
    manifest = toy.manifest_of(
        steps=steps,
        samples=samples,
        layers=layers,
        heads=heads,
        grid=grid,
        width=grid[0] * grid[1],
        latent_shape=(3 if codec == "rgb" else 4, grid[0] * PATCH, grid[1] * PATCH),
        statistics=("entropy", "rms_distance", "received_max") if kept else (),
        qk_steps=qk_steps,
        scales=(1.0,) * layers,
        **{"branches": late, **others},
    )
    model = manifest.model.model_copy(update={"codec": {"kind": codec}})
    return manifest.model_copy(update={"model": model})


def record(path: Path, *, whole: int | None = None, **options) -> Run:
    """Write the run and open it; of a partial one only the first `whole` steps."""
    manifest, grid = manifest_of(**options), options.get("grid", GRID)
    samples = len(manifest.labels)
    images = [picture(grid, sample=sample) for sample in range(samples)]
    clean = np.stack(images).transpose(0, 3, 1, 2) / 127.5 - 1
    clean = clean[:, np.arange(manifest.latent_shape[0]) % 3].astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(clean.shape, dtype=np.float32)
    with RunWriter(path, manifest) as writer:
        for step in manifest.steps[:whole]:
            level = np.float32(step.noise_level)
            _write_step(writer, manifest, step, (1 - level) * clean + level * noise, grid)
        if whole is None:
            writer.write_final(clean)
            for sample in range(samples):
                writer.write_image(sample, images[sample])
            writer.complete()
    return open_run(path, allow_partial=whole is not None)


def _write_step(writer, manifest, step, latent, grid):
    lead = (len(step.branches), len(manifest.labels))
    layers, heads, count = len(manifest.sites), manifest.sites[0].heads, grid[0] * grid[1]
    stats = {name: np.zeros((*lead, layers, heads), np.float32) for name in manifest.statistics}
    for layer in range(layers):
        stacked = np.stack([scores(layer, head, step.index, grid) for head in range(heads)])
        for head in range(heads):
            found = statistics(attention(layer, head, step.index, grid), grid)
            for name in stats:
                stats[name][:, :, layer, head] = found[name]
        if step.index in manifest.qk_steps:
            shape = (*lead, heads, count, count)
            q = np.broadcast_to(stacked, shape).astype(np.float32)
            k = np.broadcast_to(np.eye(count, dtype=np.float32), shape).copy()
            lse = np.log(np.exp(q).sum(-1))
            writer.write_qk(step.index, layer, q, k, lse)
    writer.write_step(step.index, latent.astype(np.float32), stats)
    writer.commit_step(step.index)
