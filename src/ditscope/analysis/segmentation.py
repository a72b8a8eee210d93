"""How well a split into object and background agrees with the true mask of the object.

A split of patches is judged on the pixels of the mask, so a grid of patches cannot reach an IoU of
1: `ceiling` is the best that any choice of patches reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy
import xarray
from numpy.typing import NDArray
from scipy.stats import rankdata

from ditscope.analysis.confidence import interval
from ditscope.analysis.parts import find_parts
from ditscope.analysis.pictures import finished_picture, object_mask, patch_colours
from ditscope.analysis.testing import sign_flip_p
from ditscope.core.axes import Branch
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest
from ditscope.runs.reader import Run

COVERED = 0.5
"""Share of a pixel that the object covers, from which the pixel is the object's."""

MEASURES = ("iou", "pointing", "auc", "ceiling")
FINDERS = ("attention", "colour", "position")


def scores(
    inside: NDArray[numpy.bool_], score: NDArray[numpy.floating], mask: NDArray[numpy.floating]
) -> dict[str, float]:
    """Agreement of one split with one mask.

    Args:
        inside: (y, x) of patches, true where the object is found.
        score: (y, x) of patches, larger where the object is more likely.
        mask: (height, width) of pixels, share of each that the object covers, 0 to 1.

    Returns:
        `iou`: intersection over union of found and true pixels. `pointing`: 1 if the centre of the
        patch with the highest score lies on the object, else 0 (Zhang et al. 2016,
        arXiv:1608.00507). `auc`: probability that a pixel of the object has a higher score than one
        of the background, ties count half. `ceiling`: the highest IoU of any set of patches.

    Raises:
        BadRequest: a mask without object or background, or with fewer pixels than patches.
    """
    truth = numpy.asarray(mask) >= COVERED
    rows, columns = truth.shape
    height, width = inside.shape
    if truth.all() or not truth.any():
        raise BadRequest("a mask without an object, or without a background", field="mask")
    if rows < height or columns < width:
        raise BadRequest(
            f"{rows} x {columns} pixels for {height} x {width} patches",
            field="mask",
            expected="at least a pixel for each patch",
        )
    patch = _patch_of_pixel(rows, height)[:, None] * width + _patch_of_pixel(columns, width)
    found, heights = inside.ravel()[patch], score.ravel()[patch]
    best = int(numpy.argmax(score))
    centre = int((best // width + 0.5) * rows / height), int((best % width + 0.5) * columns / width)
    return {
        "iou": float((found & truth).sum() / (found | truth).sum()),
        "pointing": float(truth[centre]),
        "auc": area_under_curve(heights[truth], heights[~truth]),
        "ceiling": _ceiling(patch, truth, inside.size),
    }


def area_under_curve(positive: NDArray, negative: NDArray) -> float:
    """Area under the ROC curve, as the Mann-Whitney statistic."""
    ranks = rankdata(numpy.concatenate([positive, negative]))
    count = len(positive)
    above = ranks[:count].sum() - count * (count + 1) / 2
    return float(above / (count * len(negative)))


def _patch_of_pixel(pixels: int, patches: int) -> NDArray[numpy.intp]:
    """Which patch each pixel of a row or column belongs to."""
    return numpy.arange(pixels) * patches // pixels


def _ceiling(patch: NDArray[numpy.intp], truth: NDArray[numpy.bool_], count: int) -> float:
    """Highest IoU of any set of patches: the best are those with the largest share of object."""
    inside = numpy.bincount(patch[truth], minlength=count)
    sizes = numpy.bincount(patch.ravel(), minlength=count)
    order = numpy.argsort(-inside / sizes, kind="stable")
    hit, taken = inside[order].cumsum(), sizes[order].cumsum()
    return float((hit / (truth.sum() + taken - hit)).max())


def scored_against(
    run: Run,
    masks: NDArray[numpy.floating],
    *,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: Branch = "cond",
) -> xarray.Dataset:
    """How well the objects that `parts.find_parts` finds agree with true masks.

    Beside attention stand two rivals that see no attention: "colour", the rule of
    `pictures.object_mask` on the finished picture; "position", the mean mask of the other samples,
    which is where objects usually are.

    Args:
        run: a run with stored Q and K of pictures whose objects are known.
        masks: (sample, height, width), share of each pixel that the object covers.
        layers: as in `find_parts`.
        steps: as in `find_parts`.
        branch: "cond" or "uncond".

    Returns:
        (sample, finder): `iou`, `pointing`, `auc` and `ceiling`, see `scores`; "position" is NaN
        for one sample. Coordinate `parts` (sample): how many were found.

    Raises:
        BadRequest: no Q and K stored, or not one usable mask for each sample.
    """
    layers, steps = (None if each is None else list(each) for each in (layers, steps))
    samples = range(len(run.manifest.labels))
    found = [find_parts(run, i, layers=layers, steps=steps, branch=branch) for i in samples]
    pictures = [finished_picture(run, i)[0].values for i in samples]
    return judged(found, pictures, masks).assign_attrs(branch=branch)


def judged(
    found: Sequence[xarray.Dataset],
    pictures: Sequence[NDArray[numpy.uint8]],
    masks: NDArray[numpy.floating],
) -> xarray.Dataset:
    """Parts that were found, and both rivals, against true masks: see `scored_against`.

    Args:
        found: what `parts.find_parts` or `parts.parts_of` returned, for each picture.
        pictures: (height, width, channel) each.
        masks: (sample, height, width).

    Raises:
        BadRequest: not one usable mask for each picture.
    """
    masks = numpy.asarray(masks)
    if masks.ndim != 3 or not len(masks) == len(pictures) == len(found):
        raise BadRequest(
            f"the shape is {masks.shape}",
            field="masks",
            expected=f"({len(found)}, height, width): one for each sample",
        )
    values = {name: numpy.full((len(found), len(FINDERS)), numpy.nan) for name in MEASURES}
    whole = masks.sum(0, dtype=float)
    for i, (parts, picture) in enumerate(zip(found, pictures, strict=True)):
        inside, score = parts["object"].values, parts["score"].values
        shown = xarray.DataArray(picture, dims=("y", "x", "channel"))
        colour = object_mask(shown, TokenGrid(height=len(inside), width=inside.shape[1]))
        rivals = [(inside, score), (colour, colour.astype(float))]
        if len(found) > 1:
            usual = _by_patch((whole - masks[i]) / (len(found) - 1), inside.shape)
            rivals.append((usual >= COVERED, usual))
        for r, rival in enumerate(rivals):
            for name, value in scores(*rival, masks[i]).items():
                values[name][i, r] = value
    numbers = [int(parts["part"].max()) + 1 for parts in found]
    return xarray.Dataset(
        {name: (("sample", "finder"), each) for name, each in values.items()},
        coords={
            "sample": range(len(found)),
            "finder": list(FINDERS),
            "parts": ("sample", numbers),
        },
    )


def summary(found: xarray.Dataset) -> xarray.Dataset:
    """Means of `scored_against` over samples, with 95 % intervals: `mean`, `low`, `high`.

    (measure, finder). `p` (measure, finder): of the difference of attention and each rival in the
    same pictures, by exchange within pictures (`testing.sign_flip_p`), not adjusted.
    """
    values = found[list(MEASURES)].to_dataarray("measure")
    result = interval(values)
    for end in ("low", "high"):  # all are shares
        result[end] = result[end].clip(0, 1)
    apart = values.sel(finder="attention") - values
    p = sign_flip_p(
        apart.transpose("sample", "measure", "finder").values.reshape(len(apart.sample), -1)
    )
    result["p"] = (("measure", "finder"), p.reshape(len(MEASURES), -1))
    return result


def _by_patch(mask: NDArray[numpy.floating], shape: tuple[int, ...]) -> NDArray[numpy.float64]:
    """Mean of a mask of pixels over each patch."""
    picture = xarray.DataArray(mask[..., None], dims=("y", "x", "channel"))
    return patch_colours(picture, TokenGrid(height=shape[0], width=shape[1]))[..., 0]
