"""`ds.diagnose`: every rule asked of a run, worst findings first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ditscope.analysis.diagnose.asymmetric import Asymmetric
from ditscope.analysis.diagnose.background import Background
from ditscope.analysis.diagnose.branches import Branches
from ditscope.analysis.diagnose.broken_object import BrokenObject
from ditscope.analysis.diagnose.calibration import Calibration
from ditscope.analysis.diagnose.census import Census
from ditscope.analysis.diagnose.class_unlike import ClassUnlike
from ditscope.analysis.diagnose.collapsed import Collapsed
from ditscope.analysis.diagnose.copied_steps import CopiedSteps
from ditscope.analysis.diagnose.dead_heads import DeadHeads
from ditscope.analysis.diagnose.diffuse import Diffuse
from ditscope.analysis.diagnose.finding import SEVERITIES, Finding
from ditscope.analysis.diagnose.lost_object import LostObject
from ditscope.analysis.diagnose.not_finite import NotFinite
from ditscope.analysis.diagnose.out_of_line import OutOfLine
from ditscope.analysis.diagnose.phases import Phases
from ditscope.analysis.diagnose.positions import Positions
from ditscope.analysis.diagnose.redundant_heads import RedundantHeads
from ditscope.analysis.diagnose.reference import Reference, describe, find_reference
from ditscope.analysis.diagnose.rule import Rule
from ditscope.analysis.diagnose.saturated import Saturated
from ditscope.analysis.diagnose.seen import Seen
from ditscope.analysis.diagnose.silent_heads import SilentHeads
from ditscope.analysis.diagnose.sinks import Sinks
from ditscope.analysis.diagnose.temperature import Temperature
from ditscope.errors import BadRequest, foreign, listed
from ditscope.runs.reader import Run

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        NotFinite(),
        Census(),
        Branches(),
        CopiedSteps(),
        DeadHeads(),
        SilentHeads(),
        RedundantHeads(),
        Saturated(),
        Collapsed(),
        Diffuse(),
        Positions(),
        Temperature(),
        OutOfLine(),
        Phases(),
        LostObject(),
        Background(),
        BrokenObject(),
        Asymmetric(),
        ClassUnlike(),
        Sinks(),
    )
}
"""By name, in the order in which findings of one severity are listed: what says most precisely what
is wrong comes before what says that something is."""

SIDES = {name: rule.side for name, rule in RULES.items()}


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    `skipped` says for each rule that could not be asked what is missing, `calibration` which
    healthy runs the run was held against, or why none.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    skipped: dict[str, str]
    calibration: str = ""

    @property
    def healthy(self) -> bool:
        """Whether no rule found anything."""
        return not self.findings

    def to_dict(self) -> dict[str, object]:
        """As plain data, for `--json`."""
        return {
            "format": "ditscope-diagnosis",
            "version": 2,
            "healthy": self.healthy,
            "calibration": self.calibration,
            "findings": [finding.to_dict() for finding in self.findings],
            "checked": list(self.checked),
            "skipped": self.skipped,
        }


def diagnose(
    run: Run, rules: Sequence[str] | None = None, *, calibration: Calibration | None = None
) -> Diagnosis:
    """What is wrong with a run.

    Args:
        run: a recorded run.
        rules: names of rules; None: all.
        calibration: healthy runs to hold it against, of whatever weights; None: those beside its
            model, if they are of the same weights.

    Raises:
        BadRequest: a rule that does not exist, or a run without statistics.
        BadRun: what is stored is damaged.
        BadConfig: the calibration beside the model is damaged.
    """
    chosen = list(RULES) if rules is None else list(rules)
    unknown = [name for name in chosen if name not in RULES]
    if unknown or not chosen:
        problem = f"there is no rule {foreign(repr(unknown[0]))}" if unknown else "no rule is named"
        raise BadRequest(problem, field="rules", expected=f"some of {listed(RULES, len(RULES))}")
    if calibration is None:
        reference, words = find_reference(run, SIDES)
    else:
        reference, words = Reference(calibration, sides=SIDES), describe(calibration)
    seen = Seen(run, reference)
    findings: list[Finding] = []
    checked, skipped = [], {}
    for name in RULES:
        if name not in chosen:
            continue
        try:
            findings += RULES[name].check(seen)
            checked.append(name)
        except BadRequest as error:
            skipped[name] = ". ".join(filter(None, (error.problem, error.fix)))
    if not run.manifest.statistics and set(checked) <= {Census.name}:
        raise BadRequest(next(iter(skipped.values()), "this run recorded no statistics"))
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(tuple(findings), tuple(checked), skipped, words)
