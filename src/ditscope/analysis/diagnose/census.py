"""Rule: the attention calls of a run are not those of its network."""

from __future__ import annotations

from collections.abc import Iterator

from ditscope.analysis.diagnose.finding import Threshold
from ditscope.analysis.diagnose.rule import Rule, Suspect
from ditscope.analysis.diagnose.seen import Seen
from ditscope.errors import foreign, listed


class Census(Rule):
    """Layers, heads or patches that the run's own configuration of the network does not explain."""

    name = "census"
    question = "Was every attention call of the network seen, and no other?"
    measurement = "layers whose attention is missing, or differs from the configuration in the run"
    threshold = Threshold("at least", 1, "layer", "a recording of the whole network misses none")

    def suspects(self, seen: Seen, threshold: Threshold) -> Iterator[Suspect]:
        """Of the whole run, then of layers."""
        config = seen.run.manifest.model.config
        depth, heads = config.get("depth"), config.get("num_heads")
        found = len(seen.sites)
        if isinstance(depth, int) and depth != found:
            yield self._suspect(
                f"{found} attention calls were seen, the network has {depth} blocks",
                abs(depth - found),
            )
        if isinstance(heads, int):
            for site in seen.sites:
                if site.heads != heads:
                    yield self._suspect(
                        f"{foreign(site.name)} has {site.heads} heads, the network {heads}",
                        1,
                        site.index,
                    )
        names = [site.name for site in seen.sites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield self._suspect(f"seen more than once: {listed(twice)}", len(twice))

    def _suspect(self, message: str, measured: int, layer: int | None = None) -> Suspect:
        return Suspect(
            message=message,
            advice="Attention that does not go through scaled_dot_product_attention is not seen, "
            "and pruned heads change the network: draw it with the configuration it has now.",
            measured=float(measured),
            layer=layer,
            branch=None,
        )
