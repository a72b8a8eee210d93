"""`ditscope diagnose`: what is wrong with a run, where, and what to try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditscope.cli.console import print_json, results

if TYPE_CHECKING:
    from ditscope.analysis.diagnose.engine import Diagnosis
    from ditscope.analysis.diagnose.finding import Finding

EXIT_FINDINGS = 1


def diagnose(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    calibration: Annotated[
        Path | None,
        typer.Option(help="Healthy runs to hold it against. [default: those beside its model]"),
    ] = None,
    rules: Annotated[
        str | None, typer.Option(help="Only these rules, with commas between. [default: all]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Ask what is wrong with a run. Exit code 0: nothing was found; 1: something was."""
    from ditscope.analysis.diagnose.calibration import read_calibration
    from ditscope.analysis.diagnose.engine import diagnose as diagnosed
    from ditscope.runs.reader import open_run

    chosen = None if rules is None else [name.strip() for name in rules.split(",") if name.strip()]
    healthy = None if calibration is None else read_calibration(calibration)
    found = diagnosed(open_run(run), chosen, calibration=healthy)
    if json:
        print_json({"run": str(run), **found.to_dict()})
    else:
        results().print("\n".join(lines(found)))
    if not found.healthy:
        raise typer.Exit(EXIT_FINDINGS)


def lines(found: Diagnosis) -> list[str]:
    """The diagnosis in words, worst first."""
    shown = [line for finding in found.findings for line in told(finding)]
    count = len(found.findings)
    verdict = "nothing was found" if found.healthy else f"{count} finding{'s' * (count > 1)}"
    asked = f"{len(found.checked)} rule{'s' * (len(found.checked) != 1)}"
    shown.append(f"{verdict}; {asked} checked: {', '.join(found.checked)}")
    shown.append(f"calibration: {found.calibration}")
    reasons: dict[str, list[str]] = {}
    for name, why in found.skipped.items():
        reasons.setdefault(" ".join(why.split()), []).append(name)
    shown += [f"not checked: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return shown


def told(finding: Finding) -> list[str]:
    """One finding in words, then numbers, then what to do."""
    measured = f"{finding.measured:.4g}"
    if finding.low is not None and finding.high is not None:
        measured += f" ({finding.low:.4g} to {finding.high:.4g} over samples)"
    return [
        f"{finding.severity}: {finding.rule}: {finding.place()}: {finding.message}",
        f"  measured  {measured}; a finding from {finding.threshold.words()}",
        f"  because   {finding.threshold.origin}",
        f"  advice    {finding.advice}",
        f"  try       {finding.command}",
        f"  see       {finding.evidence}",
        "",
    ]
