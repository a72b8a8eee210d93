"""What `ditscope plot` can draw: the kinds, the options of each, and the call that draws it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ditscope.analysis.diagnose.finding import Finding
    from ditscope.runs.reader import Run


class Kind(StrEnum):
    """What a figure shows."""

    continuity = "continuity"
    depth = "depth"
    differences = "differences"
    film = "film"
    finding = "finding"
    flow = "flow"
    head = "head"
    heads = "heads"
    kinds = "kinds"
    layers = "layers"
    map_differences = "map-differences"
    matrix = "matrix"
    overlay = "overlay"
    parts = "parts"
    phases = "phases"
    pictures = "pictures"
    received = "received"
    relevance = "relevance"
    steps = "steps"
    symmetry = "symmetry"
    timesteps = "timesteps"


PLACE = {"head", "query", "sample", "branch"}
TAKES: dict[Kind, set[str]] = {
    Kind.continuity: {"region", "layer", "step", "sample", "branch"},
    Kind.depth: {"metric", "layer", "step", "branch"},
    Kind.differences: {"other", "class_a", "class_b", "branch"},
    Kind.film: PLACE | {"layer", "step", "rate"},
    Kind.finding: {"rule", "layer"},
    Kind.flow: {"region", "layer", "sample", "branch"},
    Kind.head: PLACE | {"layer", "step"},
    Kind.heads: {"metric", "step", "sample", "branch"},
    Kind.kinds: {"branch"},
    Kind.layers: PLACE | {"layer", "step"},
    Kind.map_differences: {"other", "class_a", "class_b", "branch"},
    Kind.matrix: PLACE | {"layer", "step"},
    Kind.overlay: PLACE | {"layer", "step"},
    Kind.parts: {"parts", "layer", "step", "branch"},
    Kind.phases: {"metric", "branch"},
    Kind.pictures: set(),
    Kind.received: {"head", "layer", "step", "sample", "branch"},
    Kind.relevance: {"query", "step", "sample", "branch"},
    Kind.steps: {"metric", "layer", "branch"},
    Kind.symmetry: {"region", "axis", "at", "step", "sample", "branch"},
    Kind.timesteps: PLACE | {"layer", "step"},
}
"""Options that each kind takes."""
SEVERAL = {
    Kind.continuity: {"region": "regions", "layer": "layers", "step": "steps"},
    Kind.depth: {"metric": "metrics", "layer": "layers"},
    Kind.film: {"step": "steps"},
    Kind.flow: {"region": "regions", "layer": "layers"},
    Kind.layers: {"layer": "layers"},
    Kind.parts: {"layer": "layers", "step": "steps"},
    Kind.received: {"layer": "layers", "step": "steps"},
    Kind.steps: {"metric": "metrics", "layer": "layers"},
    Kind.symmetry: {"step": "steps"},
    Kind.timesteps: {"step": "steps"},
}
"""Options that may be repeated, and what the function calls the list of them."""


def arguments(kind: Kind, given: dict[str, Any]) -> dict[str, Any]:
    """Options as arguments of the function that draws; BadRequest for one it does not take."""
    from ditscope.errors import BadRequest, listed

    chosen = {}
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if name not in TAKES[kind]:
            taken = listed(sorted("--" + each.replace("_", "-") for each in TAKES[kind]), 20)
            raise BadRequest(f"`{kind}` does not take {option}", expected=taken or "no such option")
        if name == "region":
            value = [region_of(text) for text in value]
        if name in SEVERAL.get(kind, {}):
            chosen[SEVERAL[kind][name]] = value
        elif isinstance(value, list):
            if len(value) > 1:
                raise BadRequest(f"`{kind}` takes one {option}", expected="it once")
            chosen[name] = value[0]
        elif name == "head" and value != "mean":
            try:
                chosen[name] = int(value)
            except ValueError:
                raise BadRequest(f"{value!r}", field="head", expected="a number or mean") from None
        else:
            chosen[name] = value
    return chosen


def region_of(text: str) -> tuple[str, tuple[int, ...]]:
    """`tower=2,3,8,5` as a name and a box; without a name the box is called by its numbers."""
    from ditscope.errors import BadRequest, foreign

    name, _, numbers = text.rpartition("=")
    try:
        box = tuple(int(number) for number in numbers.split(","))
    except ValueError:
        box = ()
    if len(box) != 4:
        raise BadRequest(
            f"found {foreign(repr(text))}",
            field="region",
            expected="NAME=TOP,LEFT,BOTTOM,RIGHT in patches, the last two exclusive",
        )
    return name or numbers, box


def drawn(kind: Kind, run: Run, title: str | None, chosen: dict[str, Any]) -> Figure:
    """The figure; of a film see `film_of`."""
    from ditscope import plot as figures

    if kind is Kind.pictures:
        names = [label.name for label in run.manifest.labels]
        return figures.image_grid(run.images, names, title=title)
    if kind in (Kind.differences, Kind.map_differences):
        return _compared(kind, run, title, chosen)
    if kind is Kind.continuity:
        return _continuity(run, title, chosen)
    if kind is Kind.flow:
        regions = dict(chosen.pop("regions", ())) or _found_object(run, chosen)
        return figures.flow(run, regions, title=title, **chosen)
    if kind is Kind.finding:
        return figures.finding(run, _first_finding(run, **chosen), title=title)
    if kind is Kind.symmetry and "region" in chosen:
        chosen["region"] = chosen["region"][1]
    if kind is Kind.received and chosen.get("head") == "mean":
        del chosen["head"]
    if kind is Kind.parts and "parts" in chosen:
        chosen["count"] = chosen.pop("parts")
    function = figures.head_map if kind is Kind.head else getattr(figures, kind)
    return function(run, title=title, **chosen)


def _compared(kind: Kind, run: Run, title: str | None, chosen: dict[str, Any]) -> Figure:
    from ditscope import plot as figures
    from ditscope.errors import BadRequest
    from ditscope.plot.theme import printable
    from ditscope.runs.reader import open_run

    other = chosen.pop("other", None)
    if other is None and not {"class_a", "class_b"} & chosen.keys():
        raise BadRequest(
            "compares a run with itself",
            field="other",
            expected="--other RUN, or --class-a and --class-b",
        )
    second = open_run(other) if other else run
    names = (
        chosen.get("class_a") or printable(run.path.resolve().name),
        chosen.get("class_b") or printable(second.path.resolve().name),
    )
    names = names if names[0] != names[1] else ("A", "B")
    if kind is Kind.map_differences:
        from ditscope.analysis.map_difference import map_difference

        found = map_difference(run, second, **chosen)
        return figures.map_differences(found, names=names, title=title)
    from ditscope.analysis.compare import compare

    return figures.differences(compare(run, second, **chosen), names=names, title=title)


def _continuity(run: Run, title: str | None, chosen: dict[str, Any]) -> Figure:
    from ditscope import plot as figures
    from ditscope.analysis.continuity import continuity_between
    from ditscope.errors import BadRequest

    regions = chosen.pop("regions", [])
    if len(regions) != 2:
        raise BadRequest(
            f"found {len(regions)}",
            field="region",
            expected="two: --region 2,3,4,5 --region 2,9,4,11, from the one to the other",
        )
    found = continuity_between(run, *(box for _, box in regions), **chosen)
    return figures.continuity(run, found, title=title)


def _first_finding(run: Run, rule: str | None = None, layer: int | None = None) -> Finding:
    """The worst finding of a run, of a rule and layer if they are named; BadRequest without one."""
    from ditscope.analysis.diagnose.engine import diagnose
    from ditscope.errors import BadRequest

    found = diagnose(run, None if rule is None else [rule])
    for each in found.findings:
        if layer is None or each.layer == layer:
            return each
    raise BadRequest(
        "nothing was found that could be drawn",
        field="rule" if rule else "run",
        fix=". ".join(dict.fromkeys(found.skipped.values()))
        or "`ditscope diagnose` says what there is",
    )


def _found_object(run: Run, chosen: dict[str, Any]) -> dict[str, Any]:
    """Without named regions: the object that attention shows, and around it the rest."""
    from ditscope.analysis.parts import find_parts
    from ditscope.errors import BadRequest

    found = find_parts(run, chosen.get("sample", 0), branch=chosen.get("branch", "cond"))
    if not found["object"].any():
        raise BadRequest(
            "attention shows no object in this picture",
            field="region",
            fix="Name a region: --region tower=2,3,8,5",
        )
    return {"object": found["object"].values}
