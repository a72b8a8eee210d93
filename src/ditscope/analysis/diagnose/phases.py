"""Rule: attention that does not change as the picture forms, or changes the other way round."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from ditscope.analysis.claims import CLAIMS, EARLY, OPPOSITE, usual_claims
from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.recorded import METRIC, RECORD_STEPS
from ditscope.errors import BadRequest

LEAST_STEPS = 6


class Phases(Rule):
    """No statistic moves over the run; or, as a warning, distance grows as the noise goes."""

    name = "phases"
    question = "Does attention change from noise to picture?"
    measurement = "range over the steps of the statistic that moves most, as a share of its mean"
    threshold = Threshold(
        "at most",
        0.01,
        "of a statistic's mean",
        "absolute: from noise to picture attention of trained models moves by tenths",
    )

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of the whole run."""
        values = seen.statistics()
        count = values.sizes["step"]
        if count < LEAST_STEPS:
            raise BadRequest(
                f"{count} step{'s' * (count > 1)} cannot show phases",
                field="step",
                expected=f"at least {LEAST_STEPS}",
                fix=RECORD_STEPS,
            )
        curves = values.mean(["layer", "head"], skipna=True).transpose("sample", METRIC, "step")
        with numpy.errstate(all="ignore"):
            moves = numpy.ptp(curves.values, axis=-1) / numpy.abs(curves.values.mean(-1))
        most = numpy.nanmax(moves, axis=1, initial=0.0)  # (sample,)
        if threshold.reached(most.mean()):
            yield Suspect(
                message="attention is the same from noise to picture: the model does not see the "
                "noise go",
                advice="Check that the network is told the time step, and the scale of the time "
                "steps.",
                measured=most,
                picture=("steps",),
            )
            return
        early = usual_claims(seen.run, claims=CLAIMS[EARLY : EARLY + 1]).isel(claim=0)
        if early["verdict"].item() == OPPOSITE:
            yield Suspect(
                severity="warning",
                message="heads look farther late than early, by "
                f"{-early['mean'].item():.2f} patches: usually the layout comes first",
                advice="Check that steps run from noise to picture and that the model is told so; "
                "some models are like this.",
                measured=most,
                picture=("steps",),
            )
