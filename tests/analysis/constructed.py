"""A real run directory that holds statistics and attention maps that the test chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ditscope.runs.reader import Run, open_run
from tests.runs.toy import Toy, manifest_of


def with_statistics(path: Path, statistics, *, labels=None, seeds=None, **options) -> Run:
    """A run of these numbers: name to (step, branch, sample, layer, head); branches as they are."""
    shape = next(iter(statistics.values())).shape
    names = ("cond", "uncond")[: shape[1]]
    options = {"grid": (4, 5), "qk_steps": (), **options}
    manifest = manifest_of(
        steps=shape[0],
        samples=shape[2],
        layers=shape[3],
        heads=shape[4],
        branches=lambda step: names,
        statistics=tuple(statistics),
        **options,
    )
    manifest = relabelled(manifest, labels, seeds)
    toy = Toy(manifest)
    toy.stats = [
        {name: values[step].astype(np.float32) for name, values in statistics.items()}
        for step in range(shape[0])
    ]
    return open_run(toy.write(path))


def with_maps(path: Path, weights, *, picture=None, labels=None, seeds=None, **options) -> Run:
    """A run whose stored attention is `weights(step, branch, sample, layer)`: (head, query, key).

    Q is the logarithm of the weights and K the identity, so that the softmax gives them back.
    Statistics are those of the maps.
    """
    first = weights(0, "cond", 0, 0)
    heads, count = first.shape[:2]
    options = {"grid": (4, 5), "steps": 2, "samples": 1, "layers": 1, **options}
    manifest = manifest_of(
        heads=heads,
        width=count,
        scales=(1.0,) * options["layers"],
        **{"qk_steps": tuple(range(options["steps"])), **options},
    )
    manifest = relabelled(manifest, labels, seeds)
    toy = Toy(manifest)
    if picture is not None:
        toy.images = np.stack([picture(sample) for sample in range(len(manifest.labels))])
    for step in manifest.steps:
        found = np.array(
            [
                [
                    [
                        weights(step.index, branch, sample, layer)
                        for layer in range(len(manifest.sites))
                    ]
                    for sample in range(len(manifest.labels))
                ]
                for branch in step.branches
            ],
            dtype=float,
        )  # (branch, sample, layer, head, query, key)
        measured = statistics_of(found, options["grid"])
        toy.stats[step.index] = {
            name: measured[name].astype(np.float32) for name in manifest.statistics
        }
        for layer in range(len(manifest.sites)):
            if (step.index, layer) in toy.qk:
                q = np.log(np.maximum(found[:, :, layer], 1e-30)).astype(np.float32)
                k = np.broadcast_to(np.eye(count, dtype=np.float32), q.shape).copy()
                lse = np.log(np.exp(q.astype(float)).sum(-1)).astype(np.float32)
                toy.qk[step.index, layer] = ((q, k, lse), found[:, :, layer])
    return open_run(toy.write(path))


def statistics_of(weights, grid):
    """The three statistics of maps (..., query, key), in float64, from their definitions."""
    rows, columns = (axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]])
    apart = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    logs = np.log(np.where(weights > 0, weights, 1))
    return {
        "entropy": -(weights * logs).sum(-1).mean(-1),
        "rms_distance": np.sqrt((weights * apart).sum(-1).mean(-1)),
        "received_max": weights.mean(-2).max(-1),
    }


def relabelled(manifest, labels, seeds):
    """The same manifest with other class names and seeds of the samples."""
    update = {}
    if labels is not None:
        update["labels"] = tuple(
            record.model_copy(update={"name": name, "index": sorted(set(labels)).index(name)})
            for record, name in zip(manifest.labels, labels, strict=True)
        )
    if seeds is not None:
        update["sample_seeds"] = tuple(seeds)
    return manifest.model_copy(update=update)
