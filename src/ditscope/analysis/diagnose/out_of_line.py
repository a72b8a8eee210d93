"""Rule: a layer that is in any way unlike healthy runs."""

from __future__ import annotations

from collections.abc import Iterator

from ditscope.analysis.diagnose.departure import of_layers, origin, words, worst_of
from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Array, Rule, Suspect, curve_of, step_range
from ditscope.analysis.diagnose.seen import Seen

MOST = 0.75
"""Share of the layers that are off at once when it is the whole network."""


class OutOfLine(Rule):
    """The first layer that no healthy run explains, or the whole network."""

    name = "out-of-line"
    question = "Is every layer as in healthy runs of the model?"
    measurement = (
        "departure of entropy, distance and largest received share from healthy pictures at the "
        "same noise level, root mean square over the heads of a layer"
    )
    unit = "standard deviations"
    floor = 3

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """One: where it began."""
        values = of_layers(seen)
        mean = values.mean("sample")
        began = origin(mean, threshold)
        if began is None:
            return
        step, layer = began
        steps, layers = mean["step"].values, mean["layer"].values
        off = threshold.reached(mean.sel(step=step).values)
        whole = layer == layers[0] and off.mean() >= MOST
        when = threshold.reached(mean.sel(layer=layer).values)
        follow = layers[off & (layers > layer)].tolist()
        if whole:
            message = (
                f"{words(layers[off].tolist())} are unlike healthy runs from step {step} on: these "
                "may be other weights, or the network is given something else than it was trained "
                "on"
            )
            advice = (
                "Check which weights were loaded, and what goes into the network: its positions, "
                "time steps and scaling. Compare with the weights of the calibration."
            )
        else:
            message = f"the layer is unlike healthy runs, and the first that is, at step {step}"
            message += f"; {words(follow)} follow" if follow else ""
            advice = (
                "Layers before it are healthy, so look at the weights and the code of this one. "
                "See whether the picture is better without its heads."
            )
        yield Suspect(
            message=message,
            advice=advice,
            measured=values.sel(layer=layer).isel(step=when).mean("step").values,
            layer=None if whole else layer,
            steps=step_range(steps, when),
            curve=curve_of(steps, mean.sel(layer=layer).values),
            changes=() if whole else ("--ablate-heads", f"{layer}:0-{seen.sites[layer].heads - 1}"),
            picture=("steps", "--layer", str(layer)),
        )

    def worst(self, seen: Seen) -> Array:
        """The layer and step where each picture is farthest off."""
        return worst_of(of_layers(seen))
