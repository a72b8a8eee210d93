"""`ds.diagnose`: every rule asked of a run, worst findings first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ditscope.analysis.diagnose import (
    branches,
    collapsed,
    copied_steps,
    dead_heads,
    diffuse,
    not_finite,
    phases,
    redundant_heads,
    sinks,
)
from ditscope.analysis.diagnose.finding import SEVERITIES, Finding, Rule
from ditscope.errors import BadRequest, foreign, listed
from ditscope.runs.reader import Run

RULES: dict[str, Rule] = {
    module.RULE.name: module.RULE
    for module in (
        not_finite,
        branches,
        copied_steps,
        collapsed,
        diffuse,
        dead_heads,
        redundant_heads,
        phases,
        sinks,
    )
}
"""By name, in the order in which findings of one severity are listed."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found; `skipped` says for each rule that could not be asked what is missing."""

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    skipped: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Whether no rule found anything."""
        return not self.findings

    def to_dict(self) -> dict[str, object]:
        """As plain data, for `--json`."""
        return {
            "format": "ditscope-diagnosis",
            "version": 1,
            "healthy": self.healthy,
            "findings": [finding.to_dict() for finding in self.findings],
            "checked": list(self.checked),
            "skipped": self.skipped,
        }


def diagnose(run: Run, rules: Sequence[str] | None = None) -> Diagnosis:
    """What is wrong with a run.

    Args:
        run: a recorded run.
        rules: names of rules; None: all.

    Raises:
        BadRequest: a rule that does not exist, or a run without statistics.
        BadRun: what is stored is damaged.
    """
    chosen = list(RULES) if rules is None else list(rules)
    unknown = [name for name in chosen if name not in RULES]
    if unknown or not chosen:
        problem = f"there is no rule {foreign(repr(unknown[0]))}" if unknown else "no rule is named"
        raise BadRequest(problem, field="rules", expected=f"some of {listed(RULES, len(RULES))}")
    findings: list[Finding] = []
    checked, skipped = [], {}
    for name in RULES:
        if name not in chosen:
            continue
        try:
            findings += RULES[name].check(run)
            checked.append(name)
        except BadRequest as error:
            skipped[name] = ". ".join(filter(None, (error.problem, error.fix)))
    if not checked and not run.manifest.statistics:
        raise BadRequest(next(iter(skipped.values())))
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(tuple(findings), tuple(checked), skipped)
