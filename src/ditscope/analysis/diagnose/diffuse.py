"""Rule: a layer whose heads look at everything alike."""

from __future__ import annotations

from ditscope.analysis.diagnose.finding import Finding, Rule, Threshold, draw, sample_again
from ditscope.analysis.diagnose.measured import mean_and_interval, statistic, step_range
from ditscope.runs.reader import Run

THRESHOLD = Threshold(
    "at least",
    0.97,
    "of log N",
    "absolute: single heads of trained models reach 0.95, no mean over the heads of a layer does",
)
LASTING = 0.5
"""Share of the steps: one diffuse step is no defect."""


def check(run: Run) -> list[Finding]:
    """One finding per layer whose entropy, mean over heads, is too high at half of the steps."""
    entropy = statistic(run, "entropy", relative=True).mean("head", skipna=True)
    steps, found = entropy["step"].values, []
    for layer in entropy["layer"].values.tolist():
        values = entropy.sel(layer=layer).transpose("sample", "step").values
        holds = values.mean(0) >= THRESHOLD.value
        if holds.mean() < LASTING:
            continue
        found.append(
            Finding(
                rule=RULE.name,
                severity="error",
                message="attention is spread over all patches alike: the layer mixes, and tells "
                "nothing apart",
                threshold=THRESHOLD,
                advice="Scores are too small: a softmax scale or temperature other than that of "
                "training, or weights that were not trained. Compare with a run of known good "
                "weights.",
                command=sample_again(run),
                evidence=draw(run, "steps", "--layer", str(layer)),
                layer=layer,
                steps=step_range(steps, holds),
                branch="cond",
                **mean_and_interval(values[:, holds].mean(1)),  # type: ignore[arg-type]
            )
        )
    return found


RULE = Rule(
    "diffuse",
    "Does every layer tell patches apart?",
    "entropy, mean over the heads of a layer, as a share of log N, at half of the steps or more",
    THRESHOLD,
    check,
)
