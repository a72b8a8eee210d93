"""Rule: heads that look, and say nothing: their output is zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect, curve_of, step_range
from ditscope.analysis.diagnose.seen import Seen

LASTING = 0.2
"""Share of the steps."""
RECORD_OUTPUT = "Record it: ditscope sample --attention-debug --metrics output_norm"


class SilentHeads(Rule):
    """Heads whose output is next to nothing beside that of the other heads, at a fifth of steps."""

    name = "silent-heads"
    question = "Does every head say something?"
    measurement = (
        "size of the output of a head as a share of that of the median head of the run, at a "
        "fifth of the steps"
    )
    threshold = Threshold(
        "at most",
        0.01,
        "of the median head's output",
        "absolute: outputs of trained heads differ by tens, not by hundreds",
    )

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of layers that have such heads."""
        size = seen.statistic("output_norm", fix=RECORD_OUTPUT)
        typical = size.median(["layer", "head"], skipna=True)
        share = size / typical.where(typical > 0)
        steps = size["step"].values
        for site in seen.sites:
            here = share.sel(layer=site.index).isel(head=slice(0, site.heads))
            holds = threshold.reached(
                here.max("sample", skipna=False).transpose("head", "step").values
            )
            heads = numpy.nonzero(holds.mean(1) >= LASTING)[0]
            if heads.size:
                when = holds[heads].any(0)
                silent = here.isel(head=heads)
                yield Suspect(
                    message=f"{len(heads)} of {site.heads} heads look at the picture, but nothing "
                    "comes out of them: their values are zero",
                    advice="Look at the value weights of these heads: pruned, ablated, or lost in "
                    "a conversion. Draw it in float32, in case they are too small for the number "
                    "type.",
                    measured=silent.isel(step=when).mean(["step", "head"]).values,
                    layer=site.index,
                    heads=heads.tolist(),
                    steps=step_range(steps, numpy.asarray(when)),
                    curve=curve_of(steps, silent.mean(["head", "sample"]).values),
                    changes=("--metrics", "output_norm", "--dtype", "float32"),
                    picture=("heads", "--metric", "output_norm"),
                )
