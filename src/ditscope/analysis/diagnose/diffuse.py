"""Rule: a layer whose heads look at everything alike."""

from __future__ import annotations

from collections.abc import Iterator

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect, held
from ditscope.analysis.diagnose.seen import Seen

LASTING = 0.5
"""Share of the steps: one diffuse step is no defect."""


class Diffuse(Rule):
    """The mean head of a layer is even at half of the steps."""

    name = "diffuse"
    question = "Does every layer tell patches apart?"
    measurement = (
        "entropy, mean over the heads of a layer, as a share of log N, at half of the steps or more"
    )
    threshold = Threshold(
        "at least",
        0.97,
        "of log N",
        "absolute: single heads of trained models reach 0.95, no mean over the heads of a layer "
        "does",
    )

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of layers."""
        entropy = seen.statistic("entropy", relative=True).mean("head", skipna=True)
        for layer in entropy["layer"].values.tolist():
            found = held(entropy.sel(layer=layer), threshold, LASTING)
            if found:
                yield Suspect(
                    message="attention is spread over all patches alike: the layer mixes, and "
                    "tells nothing apart",
                    advice="Scores are too small: a softmax scale or temperature other than that "
                    "of training, or weights that were not trained. Make it sharper again.",
                    measured=found.measured,
                    layer=layer,
                    steps=found.steps,
                    curve=found.curve,
                    changes=("--temperature", "0.33", "--temperature-layers", str(layer)),
                    picture=("steps", "--layer", str(layer)),
                )
