"""What `ditscope diagnose --json` prints, as a schema: `docs/diagnosis.schema.json` is made of it.

python -m ditscope.analysis.diagnose.schema > docs/diagnosis.schema.json
"""

from __future__ import annotations

import json
import sys
from typing import Literal

from pydantic import Field

from ditscope.core.axes import Branch
from ditscope.core.manifest import Record


class ThresholdRecord(Record):
    """From where on a measurement is a finding, and where that number comes from."""

    side: Literal["at least", "at most"]
    value: float
    unit: str
    origin: str


class CurveRecord(Record):
    """The measurement along the steps, mean over samples."""

    steps: list[int]
    values: list[float | None]


class FindingRecord(Record):
    """One finding; a coordinate that is null means all there are."""

    rule: str
    severity: Literal["error", "warning"]
    message: str
    measured: float | None = Field(description="null if it is not finite")
    low: float | None = Field(description="95 % interval of `measured` over samples")
    high: float | None
    threshold: ThresholdRecord
    advice: str
    command: str = Field(description="what to try")
    evidence: str = Field(description="the command that draws it")
    place: str = Field(description="the coordinates in words")
    layer: int | None
    heads: list[int] | None
    steps: list[int] | None = Field(description="first and last", min_length=2, max_length=2)
    branch: Branch | None
    curve: CurveRecord | None


class DiagnosisRecord(Record):
    """The output of `ditscope diagnose RUN --json`."""

    run: str = Field(description="the folder, as it was typed")
    format: Literal["ditscope-diagnosis"]
    version: Literal[2]
    healthy: bool
    calibration: str = Field(description="which healthy runs it was held against, or why none")
    findings: list[FindingRecord] = Field(description="worst first")
    checked: list[str] = Field(description="rules that were asked")
    skipped: dict[str, str] = Field(description="rules that could not be asked, and why")


def schema() -> str:
    """The JSON schema, as text."""
    return json.dumps(DiagnosisRecord.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema())
