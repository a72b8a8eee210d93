"""How well the attention of a model tells objects from background, on scenes with true masks.

Scenes that no model has seen get a little noise and go through the network once; patches that
attend to one another, in the mean over all layers and heads, belong together. No mask, and no label
but the one the model is conditioned on, is used to find the object.

Shapes: B scenes of one batch; N patches.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray
from numpy.typing import NDArray

from ditscope.analysis.parts import parts_of
from ditscope.analysis.segmentation import judged
from ditscope.attention.watch import watch
from ditscope.data.scenes import EmojiScenes
from ditscope.diffusion.flow import FlowProcess
from ditscope.errors import BadRequest, foreign
from ditscope.evaluation.sources import SCENES_SEED, Report
from ditscope.pipeline import Pipeline

SCENES, BATCH = 200, 8
NOISE_LEVEL = 0.3
"""Enough noise that the network has something to do, little enough that the object is seen."""


@torch.no_grad()
def segmentation(
    pipe: Pipeline,
    *,
    scenes: int = SCENES,
    noise_level: float = NOISE_LEVEL,
    report: Report | None = None,
) -> xarray.Dataset:
    """Objects found from self-attention alone against the true masks of emoji scenes.

    Args:
        pipe: a flow-matching pipeline of pixels whose classes are those of the scenes.
        scenes: how many, from 2.
        noise_level: share of noise in what the network sees, above 0 to below 1.
        report: called with what is looked at, how many scenes are done, and how many there are.

    Returns:
        As `analysis.segmentation.scored_against`: (sample, finder) `iou`, `pointing`, `auc` and
        `ceiling`, of attention and of two rivals that see none.

    Raises:
        BadRequest: a pipeline of another kind, or a number out of range.
    """
    if not 0 < noise_level < 1:
        raise BadRequest(
            f"found {noise_level}", field="noise-level", expected="above 0 and below 1"
        )
    if scenes < 2:
        raise BadRequest(f"found {scenes}", field="num-samples", expected="2 scenes or more")
    process, shape = _checked(pipe)
    world = EmojiScenes(seed=SCENES_SEED, size=shape[1])
    labels = _shown_labels(pipe, world)
    noise = torch.Generator().manual_seed(SCENES_SEED)
    found, pictures, masks = [], [], []
    index = 0
    while len(found) < scenes:
        chosen, index = _next_scenes(world, labels, index, min(BATCH, scenes - len(found)))
        images, classes, covered = world.batch(chosen)
        clean = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        level = torch.full((len(images),), noise_level)
        state = process.add_noise(clean, torch.randn(clean.shape, generator=noise), level)
        told = torch.tensor([labels[label] for label in classes.tolist()], device=pipe.device)
        found += _parts(pipe, state, noise_level * process.time_scale, told)
        pictures += list(images)
        masks.append(covered)
        if report is not None:
            report("objects from attention", len(found), scenes)
    result = judged(found, pictures, np.concatenate(masks))
    return result.assign_attrs(noise_level=noise_level, scenes_seed=SCENES_SEED)


def _checked(pipe: Pipeline) -> tuple[FlowProcess, tuple[int, int, int]]:
    """The noise process and latent shape of a pipeline that can be asked."""
    shape = pipe.latent_shape
    if pipe.codec.config.kind != "rgb" or not isinstance(pipe.process, FlowProcess):
        raise BadRequest(
            f"{foreign(pipe.name)} does not see pixels by flow matching",
            field="segmentation",
            expected="a model such as the bundled one, trained on emoji scenes",
        )
    if shape[1] != shape[2]:
        raise BadRequest(
            f"{foreign(pipe.name)} sees pictures of {shape[1]} x {shape[2]}",
            field="segmentation",
            expected="square ones, as scenes are",
        )
    return pipe.process, shape


def _shown_labels(pipe: Pipeline, world: EmojiScenes) -> dict[int, int]:
    """Class of a scene to label of the model, for those that both know."""
    names = {name: label for label, name in enumerate(pipe.labels)}
    labels = {i: names[name] for i, name in enumerate(world.class_names) if name in names}
    if not labels:
        raise BadRequest(
            f"{foreign(pipe.name)} knows none of the classes of emoji scenes",
            field="segmentation",
            expected="a model trained on them",
        )
    return labels


def _next_scenes(
    world: EmojiScenes, labels: dict[int, int], index: int, count: int
) -> tuple[list[int], int]:
    """The next scenes whose class the model knows, and where to go on."""
    chosen = []
    while len(chosen) < count:
        if world.scene(index).label in labels:
            chosen.append(index)
        index += 1
    return chosen, index


def _parts(
    pipe: Pipeline, state: torch.Tensor, timestep: float, labels: torch.Tensor
) -> list[xarray.Dataset]:
    """The parts of every scene of a batch, from one forward."""
    with watch(pipe.model, metrics=["entropy"], keep=["*"]) as seen:
        pipe.network(state, timestep, labels)
    sites = [site for site in seen.sites if site.grid is not None]
    grid = sites[0].grid
    assert grid is not None
    patches = range(grid.start, grid.start + grid.count)
    total: NDArray[np.float64] = np.zeros((len(state), grid.count, grid.count))
    for site in sites:
        rows = seen.rows(site.name, patches).values[..., grid.start : grid.start + grid.count]
        total += rows.mean(1) / len(sites)
    return [parts_of((each + each.T) / 2, grid) for each in total]
