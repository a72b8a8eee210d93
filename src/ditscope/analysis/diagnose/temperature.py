"""Rule: a layer that is sharper or flatter than in healthy runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import xarray

from ditscope.analysis.diagnose.departure import of_metric, origin, worst_of
from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Array, Rule, Suspect, curve_of, step_range
from ditscope.analysis.diagnose.seen import Seen

DIRECT = 0.5
"""Share of the largest departure in the step where it began, from which another layer is changed
itself, and does not only follow."""


class Temperature(Rule):
    """Layers whose heads are all sharper, or all flatter, than in healthy runs."""

    name = "temperature"
    question = "Is every layer as sharp as in healthy runs?"
    measurement = (
        "departure of the entropy from that of healthy pictures at the same noise level, mean over "
        "the heads of a layer"
    )
    unit = "standard deviations"
    floor = 3

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """The layers where it began, the farthest off first."""
        values = _departures(seen)
        mean = values.mean("sample")
        began = origin(abs(mean), threshold)
        if began is None:
            return
        at_start = abs(mean.sel(step=began[0])).values
        holds = threshold.reached(at_start) & (at_start >= DIRECT * numpy.nanmax(at_start))
        steps = mean["step"].values
        for layer in sorted(numpy.nonzero(holds)[0], key=lambda each: -at_start[each]):
            here = mean.isel(layer=layer).values
            sharper = here[steps == began[0]].item() < 0
            same = (here < 0) == sharper
            when = threshold.reached(abs(here)) & same
            number = int(mean["layer"].values[layer])
            shift = _shift(seen, number, began[0])
            yield Suspect(
                message=f"attention is {'sharper' if sharper else 'flatter'} than in healthy runs, "
                f"by {abs(shift):.2f} nats at step {began[0]}, where it begins",
                advice="The softmax scale or temperature is not that of training, or queries or "
                "keys are scaled. Undo it and compare.",
                measured=abs(values.isel(layer=layer, step=when)).mean("step").values,
                layer=number,
                steps=step_range(steps, when),
                curve=curve_of(steps, here),
                changes=(
                    "--temperature",
                    "3" if sharper else "0.33",
                    "--temperature-layers",
                    str(number),
                ),
                picture=("steps", "--layer", str(number), "--metric", "entropy"),
            )

    def worst(self, seen: Seen) -> Array:
        """The layer and step where each picture is farthest off."""
        return worst_of(_departures(seen))


def _departures(seen: Seen) -> xarray.DataArray:
    return of_metric(seen, "entropy").mean("head", skipna=True)


def _shift(seen: Seen, layer: int, step: int) -> float:
    """Entropy less that of healthy pictures, nats, mean over heads and samples."""
    assert seen.reference is not None
    mean, _ = seen.reference.expected(seen.statistics(), "cond")
    usual = mean.sel(metric="entropy", layer=layer, step=step).mean("head")
    own = seen.statistic("entropy").sel(layer=layer, step=step)
    return float(own.mean() - usual)
