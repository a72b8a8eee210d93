"""Which steps, layers, heads and branches of a run were measured, and the option that widens it.

A run that was sampled with a `Keep` has NaN everywhere else. To ask for such a place is an error
that names the option.
"""

from __future__ import annotations

from collections.abc import Sequence

from ditscope.core.axes import BRANCH, HEAD, LAYER, STEP
from ditscope.errors import BadRequest, listed
from ditscope.runs.reader import Run

_OPTIONS = {STEP: "steps", LAYER: "layers", HEAD: "heads", BRANCH: "branches"}


def measured_steps(run: Run, steps: Sequence[int]) -> list[int]:
    """Those of `steps` at which statistics were taken."""
    return [step for step in steps if run.manifest.only.has_step(step)]


def measured_layers(run: Run) -> list[int]:
    """The layers at which statistics were taken."""
    return [site.index for site in run.manifest.sites if run.manifest.only.heads_at(site)]


def refuse_unmeasured(
    run: Run,
    *,
    steps: Sequence[int] = (),
    layers: Sequence[int] = (),
    branch: str | None = None,
) -> None:
    """Refuse steps, layers and a branch of the run at which nothing was measured.

    Raises:
        BadRequest: names them, what was measured, and the option to record them.
    """
    only = run.manifest.only
    every_step = [record.index for record in run.steps]
    if branch is not None and not only.has_branch(branch):
        raise _unmeasured(BRANCH, [branch], only.branches or ())
    for axis, asked, known in (
        (STEP, steps, measured_steps(run, every_step)),
        (LAYER, layers, measured_layers(run)),
    ):
        if absent := [each for each in asked if each not in known]:
            raise _unmeasured(axis, absent, known)


def refuse_partly_measured(run: Run) -> None:
    """Refuse a run of which only some steps, layers, heads or branches were measured.

    Raises:
        BadRequest: names the options without which all is recorded.
    """
    chosen = {*_OPTIONS.values()} & run.manifest.only.facts().keys()
    if chosen:
        raise BadRequest(
            f"only some {listed(sorted(chosen))} of this run were measured",
            field="metric",
            fix="Record all: ditscope sample --attention-debug, without "
            + listed(f"--record-{name}" for name in sorted(chosen)),
        )


def _unmeasured(axis: str, absent: Sequence[object], known: Sequence[object]) -> BadRequest:
    option = f"--record-{_OPTIONS[axis]}"
    return BadRequest(
        f"nothing was measured at {axis} {listed(absent)} of this run",
        field=axis,
        expected=f"one of {listed(known, 20)}" if known else None,
        fix=f"Record it: ditscope sample --attention-debug, without {option} or with more in it",
    )
