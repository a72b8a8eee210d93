"""Coordinates in words, the same in every figure. Numbers count from 0, as in every call."""

from __future__ import annotations

import math

import numpy

from ditscope.analysis.maps import AttentionPanels
from ditscope.core.axes import Branch
from ditscope.plot.marks import percent, scale_of
from ditscope.plot.theme import printable
from ditscope.runs.reader import Head, Run

MAX_NAME = 60
"""Characters of a class name that are written in a line with other words."""

SPREAD_NOTE = (
    "≈ n patches: how many the attention spreads over, exp(entropy of the map). "
    "even: what each patch gets if all get the same."
)


def sentence(*parts: str) -> str:
    """Parts in one line, set apart by dots, the first letter a capital."""
    line = " · ".join(parts)
    return line[:1].upper() + line[1:]


def layer_words(run: Run, layer: int) -> str:
    """`layer 5 of 0-7`."""
    return _numbered("layer", layer, len(run.manifest.sites))


def head_words(run: Run, layer: int, head: Head) -> str:
    """`head 2 of 0-3`, or that it is a mean."""
    heads = run.manifest.sites[layer].heads
    return counted("mean of", heads, "head") if head == "mean" else _numbered("head", head, heads)


def step_words(run: Run, step: int) -> str:
    """`step 37 of 0-49 (noise 0.26)`."""
    level = run.manifest.steps[step].noise_level
    return f"{_numbered('step', step, len(run.manifest.steps))} (noise {level:.2f})"


def counted(words: str, count: int, thing: str) -> str:
    """`mean over 50 steps`, `mean over 1 step`."""
    return f"{words} {count} {thing}{'' if count == 1 else 's'}"


def _numbered(thing: str, index: int, count: int) -> str:
    return f"{thing} {index} of 0-{count - 1}" if count > 1 else f"the only {thing}"


def subject_words(run: Run, sample: int, branch: Branch) -> str:
    """What the model was asked for, in the branch that is shown."""
    name = f'"{printable(run.manifest.labels[sample].name, MAX_NAME)}"'
    return f"asked for {name}" if branch == "cond" else f"{name}, branch that is not told the class"


def panel_words(run: Run, panels: AttentionPanels, *, layer: bool = True, step: bool = True) -> str:
    """Where and when the first panel is, without what differs between panels."""
    place = panels.places[0]
    return sentence(
        *([layer_words(run, place.layer)] if layer else []),
        head_words(run, place.layer, place.head),
        *([step_words(run, place.step)] if step else []),
        subject_words(run, place.sample, place.branch),
    )


def closing_notes(panels: AttentionPanels) -> list[str]:
    """What was chosen by rule, and the call that returns the numbers of the first panel."""
    first, several = panels.places[0], len(panels.places) > 1
    numbers = f"Numbers{' of the first map' if several else ''}: {first.call()}"
    return [*([" ".join(first.reasons)] if first.reasons else []), numbers]


def spread_words(panels: AttentionPanels, i: int) -> str:
    """How far map `i` is spread, in words that fit below a small panel."""
    values = panels.weights.values[i]
    if not numpy.isfinite(values).any():
        return "no data"
    constant = scale_of(values).constant
    if constant is not None:
        return f"constant, {percent(constant)}"
    if not numpy.isfinite(values).all():
        return "hatched: no data"
    effective = panels.effective_patches[i]
    return f"≈ {effective:.0f} patches" if math.isfinite(effective) else ""
