"""Rule: numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect, step_range
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.measured import measured_steps
from ditscope.analysis.recorded import branch_steps, metric_names
from ditscope.core.axes import BRANCHES
from ditscope.core.sites import Site
from ditscope.core.statistics import STATISTICS
from ditscope.runs.reader import Run


class NotFinite(Rule):
    """NaN or Inf where a number was measured: one suspect per layer and branch."""

    name = "not-finite"
    question = "Are all numbers finite?"
    measurement = "statistics that are NaN or infinite"
    threshold = Threshold("at least", 1, "number", "a softmax of finite scores is finite")

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of layers and branches."""
        run = seen.run
        names = metric_names(run)
        for branch in BRANCHES:
            if branch not in run.stats["branch"].values.tolist():
                continue
            steps = numpy.array(_whole(run, measured_steps(run, branch_steps(run, branch))), int)
            if not run.manifest.only.has_branch(branch) or not steps.size:
                continue
            here = run.stats[names].sel(branch=branch, step=steps)
            for site in seen.sites:
                heads = list(run.manifest.only.heads_at(site))
                if not heads:
                    continue
                values = here.isel(layer=site.index, head=heads).to_dataarray()
                values = values.transpose("variable", "step", "head", ...)
                gaps = numpy.array([_may_be_nan(name, site) for name in names])
                allowed = gaps.reshape(-1, *[1] * (values.ndim - 1)) & numpy.isnan(values.values)
                bad = numpy.moveaxis(~numpy.isfinite(values.values) & ~allowed, 0, -1)
                if not bad.any():
                    continue
                by_head = bad.any(tuple(i for i in range(bad.ndim) if i != 1))
                where = numpy.asarray(bad.any(tuple(range(1, bad.ndim))))
                yield Suspect(
                    message=f"{bad.sum()} of {bad.size} statistics are NaN or infinite",
                    advice="Scores overflow or the weights are damaged. Draw it in float32; if it "
                    "stays, look at the weights.",
                    measured=float(bad.sum()),
                    layer=site.index,
                    heads=numpy.array(heads)[by_head].tolist(),
                    steps=step_range(steps, where),
                    branch=branch,
                    changes=("--dtype", "float32"),
                )


def _whole(run: Run, steps: Iterable[int]) -> list[int]:
    """Those of which no statistic was lost before a repair: that is no fault of the model."""
    specs = run.layout.stats.values()
    return [
        step
        for step in steps
        if not any(run.files.lost.intersection(spec.chunk_files(step=step)) for spec in specs)
    ]


def _may_be_nan(name: str, site: Site) -> bool:
    """Whether NaN can be the right answer: no step before, no such tokens, no grid."""
    known = STATISTICS.get(name)
    return known is None or known.gaps or math.isnan(known.maximum(site))
