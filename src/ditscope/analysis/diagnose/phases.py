"""Rule: attention that does not change as the picture forms, or changes the other way round."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray

from ditscope.analysis.claims import CLAIMS, EARLY, OPPOSITE, usual_claims
from ditscope.analysis.diagnose.finding import (
    Finding,
    Rule,
    Severity,
    Threshold,
    draw,
    sample_again,
)
from ditscope.analysis.diagnose.measured import mean_and_interval
from ditscope.analysis.recorded import METRIC, recorded
from ditscope.errors import BadRequest
from ditscope.runs.reader import Run

LEAST_STEPS = 6
THRESHOLD = Threshold(
    "at most",
    0.01,
    "of a statistic's mean",
    "absolute: from noise to picture attention of trained models moves by tenths",
)


def check(run: Run) -> list[Finding]:
    """A finding if no statistic moves over the run; a warning if distance grows as noise goes."""
    values = recorded(run)
    if values.sizes["step"] < LEAST_STEPS:
        raise BadRequest(
            f"{values.sizes['step']} steps have no phases",
            field="step",
            expected=f"at least {LEAST_STEPS}",
            fix="Record more: ditscope sample --attention-debug --steps 20",
        )
    curves = values.mean(["layer", "head"], skipna=True).transpose("sample", METRIC, "step").values
    with numpy.errstate(all="ignore"):
        moves = numpy.ptp(curves, axis=-1) / numpy.abs(curves.mean(-1))  # (sample, metric)
    most = numpy.nanmax(moves, axis=1, initial=0.0)
    if most.mean() <= THRESHOLD.value:
        return [
            _finding(
                run,
                "error",
                "attention is the same from noise to picture: the model does not see the noise go",
                "Check that the network is told the time step, and the scale of the time steps.",
                most,
            )
        ]
    early = usual_claims(run, claims=CLAIMS[EARLY : EARLY + 1]).isel(claim=0)
    if early["verdict"].item() != OPPOSITE:
        return []
    return [
        _finding(
            run,
            "warning",
            "heads look farther late than early, by "
            f"{-early['mean'].item():.2f} patches: usually the layout comes first",
            "Check that steps run from noise to picture and that the model is told so; some models "
            "are like this.",
            most,
        )
    ]


def _finding(run: Run, severity: Severity, message: str, advice: str, moves: NDArray) -> Finding:
    return Finding(
        rule=RULE.name,
        severity=severity,
        message=message,
        threshold=THRESHOLD,
        advice=advice,
        command=sample_again(run),
        evidence=draw(run, "steps"),
        branch="cond",
        **mean_and_interval(moves),  # type: ignore[arg-type]
    )


RULE = Rule(
    "phases",
    "Does attention change from noise to picture?",
    "range over the steps of the statistic that moves most, as a share of its mean",
    THRESHOLD,
    check,
)
