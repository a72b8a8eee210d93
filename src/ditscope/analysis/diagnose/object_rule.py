"""The base of the rules about the object: a measure of stored maps in the late steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy
import xarray

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Array, Rule, Suspect, curve_of, step_range
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.recorded import RECORD_MAPS, RECORD_STEPS
from ditscope.errors import BadRequest

LATE = 1 / 3
"""Share of the steps that are late: the object is there by then."""


class ObjectRule(Rule):
    """One measure of `objects`, mean over layers, at the late stored steps.

    `sign` says which way is wrong: 1 too much, -1 too little, 0 either. Where the model is
    calibrated the measure counts in standard deviations of healthy pictures, else as it is.
    """

    quantity: ClassVar[str]
    sign: ClassVar[int]
    message: ClassVar[str]
    advice: ClassVar[str]
    changes: ClassVar[tuple[str, ...]] = ("--qk-steps", "5")
    picture: ClassVar[tuple[str, ...]] = ("overlay",)
    unit = "standard deviations"
    floor = 3

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of the late steps."""
        calibrated = seen.reference is not None and seen.reference.healthy(self.name) is not None
        every = self.measured(seen, calibrated)
        values = late(seen, every)
        data = values.transpose("sample", "step").values
        holds = threshold.reached(data.mean(0))
        if holds.any():
            yield Suspect(
                message=self.message,
                advice=self.advice,
                measured=data[:, holds].mean(1),
                steps=step_range(values["step"].values, holds),
                curve=curve_of(every["step"].values, every.mean("sample").values),
                changes=self.changes,
                picture=self.picture,
            )

    def worst(self, seen: Seen) -> Array | None:
        """The late step where each picture is farthest off; None without a reference."""
        if seen.reference is None:
            return None
        values = late(seen, self.measured(seen, True)).transpose("sample", "step").values
        return values.max(1)

    def measured(self, seen: Seen, calibrated: bool) -> xarray.DataArray:
        """How wrong it is (step, sample), mean over layers."""
        values = seen.objects()[self.quantity]
        if calibrated and seen.reference is not None:
            off = seen.reference.object_departures(seen.objects(), self.quantity)
            if off is None:
                raise BadRequest("the calibration has no stored maps", field="calibration")
            values = off
        values = values.mean("layer", skipna=True)
        return self.sign * values if self.sign else abs(values)


def late(seen: Seen, values: xarray.DataArray) -> xarray.DataArray:
    """The stored steps in the last third of the run, of pictures with an object.

    Raises BadRequest if there are none.
    """
    first = round(len(seen.run.steps) * (1 - LATE))
    if first == len(seen.run.steps):
        raise BadRequest(
            "one step has no late ones", field="step", fix=f"{RECORD_STEPS} --qk-steps 5"
        )
    found = stored_within(values, first, len(seen.run.steps))
    known = numpy.isfinite(found.transpose("step", "sample").values).all(0)
    if not known.any():
        raise BadRequest("no object is found in the pictures, or no patch grid", field="picture")
    return found.isel(sample=known)


def stored_within(values: xarray.DataArray, first: int, end: int) -> xarray.DataArray:
    """The stored steps from `first` to before `end`; BadRequest if there are none."""
    kept = [step for step in values["step"].values.tolist() if first <= step < end]
    if first >= end:
        raise BadRequest("too few steps to have a middle", field="step", fix=RECORD_STEPS)
    if not kept:
        raise BadRequest(
            f"no map is stored at steps {first} to {end - 1}", field="step", fix=RECORD_MAPS
        )
    return values.sel(step=kept)
