"""A run as the rules see it: its statistics as labelled arrays, and what healthy runs have."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import cache

import numpy
import xarray

from ditscope.analysis.diagnose.objects import object_measures
from ditscope.analysis.diagnose.reference import Reference
from ditscope.analysis.head_kinds import EVEN
from ditscope.analysis.measured import refuse_partly_measured
from ditscope.analysis.recorded import METRIC, RECORD_STATISTICS, recorded, relative_to_even
from ditscope.core.axes import BRANCHES, Branch
from ditscope.core.sites import Site
from ditscope.errors import BadRequest, foreign
from ditscope.runs.reader import Run


class Seen:
    """A run and, where there is one, the reference of its model. What is asked twice is made once.

    Steps, samples, layers and heads carry their coordinates; numbers are float64.
    """

    def __init__(self, run: Run, reference: Reference | None = None) -> None:
        self.run = run
        self.reference = reference
        self.sites: tuple[Site, ...] = run.manifest.sites
        self.labels = tuple(label.name for label in run.manifest.labels)  # one per sample
        # Many rules ask for the same arrays.
        self.statistics: Callable[..., xarray.DataArray] = cache(self._statistics)
        self.departures: Callable[..., xarray.DataArray] = cache(self._departures)
        self.objects: Callable[[], xarray.Dataset] = cache(self._objects)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches that were evaluated at any step."""
        found = {branch for record in self.run.steps for branch in record.branches}
        return tuple(branch for branch in BRANCHES if branch in found)

    def part(self, samples: Sequence[int], reference: Reference | None = None) -> Seen:
        """Some pictures of the run, held against a reference; what was read of it is shared."""
        other = Seen(self.run, reference)
        other.labels = tuple(self.labels[sample] for sample in samples)
        other.statistics = lambda branch="cond": self.statistics(branch).isel(sample=list(samples))
        other.objects = lambda: self.objects().isel(sample=list(samples))
        return other

    @property
    def calibrate(self) -> str:
        """The command that records healthy runs of the run's model."""
        model = self.run.manifest.model
        words = ["ditscope", "calibrate", model.source]
        if model.weights is not None:
            words += ["--weights", model.weights]
        return foreign(shlex.join(words), 1000)

    def _statistics(self, branch: Branch = "cond") -> xarray.DataArray:
        """All that was recorded of a branch, (metric, step, sample, layer, head).

        Raises BadRequest where only some places were measured: the rules compare all of them.
        """
        refuse_partly_measured(self.run)
        return recorded(self.run, branch=branch)

    def statistic(
        self, metric: str, *, relative: bool = False, branch: Branch = "cond", fix: str = ""
    ) -> xarray.DataArray:
        """One statistic, (step, sample, layer, head), as recorded or in units of even attention.

        Raises BadRequest if the run did not record it, with `fix`.
        """
        values = self.statistics(branch)
        if metric not in values[METRIC].values.tolist():
            fix = fix or RECORD_STATISTICS
            if self.run.manifest.only.queries is not None:
                fix += ", without --record-queries"
            raise BadRequest(f"this run recorded no {metric}", field=METRIC, fix=fix)
        values = values.sel({METRIC: [metric]})
        values = relative_to_even(self.run, values) if relative else values
        return values.isel({METRIC: 0}, drop=True).drop_vars("unit", errors="ignore")

    def even_heads(self, layer: int) -> numpy.ndarray:
        """Heads (head,) that look at everything alike at every step: they are one rule's matter.

        All false where entropy was not recorded.
        """
        heads = self.sites[layer].heads
        if "entropy" not in self.statistics()[METRIC].values.tolist():
            return numpy.zeros(heads, bool)
        entropy = self.statistic("entropy", relative=True).sel(layer=layer)
        return (entropy.isel(head=slice(0, heads)).min(["step", "sample"]) >= EVEN).values

    def _departures(self, branch: Branch = "cond") -> xarray.DataArray:
        """How many standard deviations of healthy pictures each number is off.

        (metric, step, sample, layer, head), of the metrics that the reference knows. Raises
        BadRequest without a reference.
        """
        if self.reference is None:
            raise BadRequest("there is no calibration", field="calibration", fix=self.calibrate)
        return self.reference.departures(self.statistics(branch), branch)

    def _objects(self) -> xarray.Dataset:
        """Attention on and within the object, see `objects.object_measures`."""
        return object_measures(self.run)
