"""Which passes over the tokens the asked metrics take: as few as can be, and shared.

A call is reduced by the kernel of the device, if it makes each asked metric; or by fused attention
calls alone, where each can be had so and it is cheaper; or by one pass over tiles of scores, which
serves every metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ditscope.attention.metrics.registry import (
    BRANCHES,
    COLUMNS,
    IMAGE,
    NEEDS,
    OUTPUT,
    QUERIES,
    RECEIVED,
    STEPS,
    Metric,
    find,
    known_metrics,
)
from ditscope.errors import BadRequest, foreign

DETAILS = ("heads", "tokens")
"""One number per head; or that, and one for each of its tokens."""


@dataclass(frozen=True)
class Plan:
    """What is made for the asked metrics, by what each needs."""

    names: tuple[str, ...]  # as asked for
    made: tuple[str, ...]  # by a pass: those asked for, and those that others follow from
    queries: tuple[Metric, ...]
    image: tuple[Metric, ...]
    columns: tuple[Metric, ...]
    received: tuple[Metric, ...]
    steps: tuple[Metric, ...]  # in passes over the tiles of two maps
    branches: tuple[Metric, ...]  # likewise
    output: tuple[Metric, ...]  # from what the call returned
    derived: tuple[Metric, ...]  # each after the one it follows from
    tokens: bool  # the numbers of single tokens are kept too

    @property
    def fusable(self) -> bool:
        """Whether fused calls alone can serve it."""
        return not self.tokens and all(each.fused for each in (*self.queries, *self.image))

    @property
    def one_pass(self) -> bool:
        """Whether the kernel of a device, where there is one, can serve it."""
        expected = self.tokens and self.columns  # of each query: sums that no kernel makes
        return not expected and all(each.one_pass for each in (*self.queries, *self.image))

    @property
    def token_names(self) -> tuple[str, ...]:
        """The metrics of which the numbers of single tokens are kept."""
        return tuple(name for name in self.names if self.tokens and find(name).statistic.axis)

    @property
    def all_heads(self) -> bool:
        """Whether a tile must hold every head of a row."""
        return any(each.all_heads for each in self.queries)

    def explain(self) -> str:
        """The passes, in words, one to a line."""
        lines = ["one pass over tiles of scores, softmax and log-sum-exp of each:"]
        for metrics, what in (
            (self.queries, "reduced per query"),
            (self.image, "reduced per image query"),
            (self.received, "summed over queries"),
            (self.columns, "expected from the sums over queries"),
        ):
            lines += [f"  {what}: {_names(metrics)}"] if metrics else []
        if self.fusable:
            lines[0] = f"where a mask or the precision asks for it, {lines[0]}"
            lines.append("elsewhere, fused attention calls and no tile:")
            lines += [f"  {number}. {call}" for number, call in enumerate(self._calls(), 1)]
        if self.one_pass:
            lines[:0] = [
                "without a mask, where there is a kernel, one pass over scores that are not kept,",
                "for all of this; else:",
            ]
        for metrics, other in ((self.steps, "step before"), (self.branches, "other branch")):
            if metrics:
                lines.append(f"one pass over tiles of two maps, with the {other}:")
                lines.append(f"  reduced per query: {_names(metrics)}")
        lines += [f"from the output of the call: {_names(self.output)}"] if self.output else []
        lines += [f"{each.name} follows from {each.needs}" for each in self.derived]
        return "\n".join(lines)

    def _calls(self) -> list[str]:
        first = "attention with the keys as values, for log-sum-exp"
        swapped = (*self.image, *self.received, *self.columns)
        calls = [f"{first} and {_names(self.queries)}" if self.queries else first]
        return calls + ([f"queries and keys swapped, for {_names(swapped)}"] if swapped else [])


def plan_of(names: Sequence[str], detail: str = "heads") -> Plan:
    """The plan of the metrics `names`; with "tokens" as detail, the numbers of tokens are kept too.

    Raises:
        BadRequest: there is no such metric or detail.
    """
    names, tokens = known_metrics(names), known_detail(detail) == "tokens"
    made: list[Metric] = []
    derived: list[Metric] = []
    for name in names:
        _add(find(name), made, derived)

    def needing(kind: str) -> tuple[Metric, ...]:
        return tuple(each for each in made if each.needs == kind)

    return Plan(
        names=names,
        made=tuple(each.name for each in made),
        queries=needing(QUERIES),
        image=needing(IMAGE),
        columns=needing(COLUMNS),
        received=needing(RECEIVED),
        steps=needing(STEPS),
        branches=needing(BRANCHES),
        output=needing(OUTPUT),
        derived=tuple(derived),
        tokens=tokens,
    )


def known_detail(detail: str) -> str:
    """The detail, if there is such a one; else BadRequest."""
    if detail not in DETAILS:
        raise BadRequest(
            f"found {foreign(repr(detail))}", field="detail", expected=" or ".join(DETAILS)
        )
    return detail


def _add(metric: Metric, made: list[Metric], derived: list[Metric]) -> None:
    """Add a metric after those it follows from, unless it is there."""
    if metric in made or metric in derived:
        return
    if metric.needs in NEEDS:
        made.append(metric)
    else:
        _add(find(metric.needs), made, derived)
        derived.append(metric)


def _names(metrics: Sequence[Metric]) -> str:
    return ", ".join(each.name for each in metrics)
