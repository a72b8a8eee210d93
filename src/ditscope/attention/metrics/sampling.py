"""Which metrics can be estimated from a sample of queries, and what that would take, in words."""

from __future__ import annotations

from collections.abc import Sequence

from ditscope.attention.metrics.plan import Plan, plan_of
from ditscope.attention.metrics.registry import NEEDS, OUTPUT, RECEIVED, Metric, find
from ditscope.core.keep import Keep, KeepRecord
from ditscope.core.standard_error import error_name
from ditscope.core.statistics import DEFAULT_METRICS
from ditscope.errors import BadRequest, listed


def sampled_defaults() -> tuple[str, ...]:
    """The default metrics that can be estimated."""
    return tuple(name for name in DEFAULT_METRICS if _root(name).needs != RECEIVED)


def estimated(names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that a sample of queries estimates; what the output says stays exact."""
    return tuple(name for name in names if _root(name).needs not in (OUTPUT, RECEIVED))


def refuse_unsampled(plan: Plan) -> None:
    """Refuse what a sample of queries cannot tell.

    Raises:
        BadRequest: names the metrics of what keys receive, whose largest is larger in a sample
            than in truth; numbers of single tokens; a metric with the name of a standard error.
    """
    biased = [name for name in plan.names if _root(name).needs == RECEIVED]
    if biased:
        raise BadRequest(
            f"{listed(biased)} needs every query: of a sample, what the keys receive most is too "
            "large",
            field="metrics",
            fix="leave it out, or look at every query: Keep(queries=None), no --record-queries",
        )
    if plan.tokens:
        raise BadRequest(
            "found 'tokens'; a sample of queries has no number for each token",
            field="detail",
            expected="heads, with Keep(queries=...)",
        )
    if twice := {error_name(name) for name in plan.names} & {*plan.names}:
        raise BadRequest(
            f"{listed(sorted(twice))} is the name of a standard error",
            field="metrics",
            fix="register the metric under another name",
        )


def explain(
    metrics: Sequence[str] | None = None, *, detail: str = "heads", only: Keep | None = None
) -> str:
    """How the metrics would be made: which passes, and what each is shared by.

    Args:
        metrics: Their names. [default: the default metrics; with `Keep(queries=...)` those of them
            that can be estimated]
        detail: "heads" or "tokens".
        only: What is measured of all there is to see.

    Raises:
        BadRequest: there is no such metric or detail, or a sample of queries cannot tell it.
    """
    queries = None if only is None else only.queries
    if metrics is None:
        metrics = DEFAULT_METRICS if queries is None else sampled_defaults()
    plan = plan_of(metrics, detail)
    lines = _where(only) if only else []
    if queries is None:
        return "\n".join([*lines, plan.explain()])
    refuse_unsampled(plan)
    return "\n".join([*lines, *_sampled(plan, queries)])


def _where(only: KeepRecord) -> list[str]:
    facts = [
        f"{name} {listed(value, 8)}"
        for name, value in only.facts().items()
        if isinstance(value, list)
    ]
    return [f"only at {'; '.join(facts)}; nothing is computed elsewhere:"] if facts else []


def _sampled(plan: Plan, queries: int) -> list[str]:
    lines = [
        f"scores of {queries} queries of each head with all keys, two of each of {queries // 2} "
        "strata:"
    ]
    for metrics, what in (
        (plan.queries, "reduced per query"),
        (plan.image, "reduced per image query"),
        (plan.columns, "expected of each query"),
    ):
        lines += [f"  {what}: {_names(metrics)}"] if metrics else []
    for metrics, other in ((plan.steps, "step before"), (plan.branches, "other branch")):
        if metrics:
            lines.append(f"and of the same queries of the {other}: {_names(metrics)}")
    lines += [f"from the output of the call, exact: {_names(plan.output)}"] if plan.output else []
    lines += [f"{each.name} follows from {each.needs}" for each in plan.derived]
    return [*lines, f"with a standard error each: {listed(estimated(plan.names), 20)}"]


def _names(metrics: Sequence[Metric]) -> str:
    return ", ".join(each.name for each in metrics)


def _root(name: str) -> Metric:
    """The metric that `name` follows from in the end; itself, if a pass is made for it."""
    metric = find(name)
    return metric if metric.needs in NEEDS else _root(metric.needs)
