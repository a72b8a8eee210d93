"""`ditscope diagnose`: words first, then numbers; the exit code says whether anything was found."""

import json

import pytest

from tests.analysis.constructed import with_statistics
from tests.analysis.test_diagnose import dead, healthy, sinks


@pytest.fixture
def sick(tmp_path):
    values = healthy()
    dead(values)
    sinks(values)
    return str(with_statistics(tmp_path / "sick", values).path)


def test_a_healthy_run_ends_with_0(cli, tmp_path):
    path = str(with_statistics(tmp_path / "run", healthy()).path)
    code, out, err = cli("diagnose", path)
    assert (code, err) == (0, "")
    assert out.startswith("nothing was found; 11 rules checked: not-finite, ")
    assert "calibration: none: toy.calibration.json does not exist; `ditscope calibrate toy`" in out
    assert "not checked: positions, temperature, out-of-line, class-unlike: only healthy" in out
    tree = json.loads(cli("diagnose", path, "--json").out)
    assert tree["healthy"] is True and tree["findings"] == []


def test_findings_are_told_worst_first_and_end_with_1(cli, sick):
    code, out, err = cli("diagnose", sick)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0].startswith("error: dead-heads: layer 1, heads 0, 2, steps 0 to 11, cond: 2 of")
    assert lines[1].startswith("  measured  0.9999 (")
    assert "a finding from at least 0.999 of log N" in lines[1]
    assert lines[4].startswith("  try       ditscope sample --model toy ")
    assert lines[5] == f"  see       ditscope plot heads {sick} -o heads.png"
    assert "warning: sinks: layer 1, head 2, steps 3 to 11, cond: one patch" in out
    assert "2 findings; 11 rules checked" in out


def test_json_and_a_choice_of_rules(cli, sick):
    outcome = cli("diagnose", sick, "--json", "--rules", "sinks, branches")
    tree = json.loads(outcome.out)
    assert outcome.code == 1 and tree["checked"] == ["branches", "sinks"]
    assert [finding["rule"] for finding in tree["findings"]] == ["sinks"]
    assert tree["findings"][0]["threshold"]["value"] == 0.3
    assert cli("diagnose", sick, "--rules", "branches").code == 0


def test_the_card_of_a_finding(cli, sick, tmp_path):
    out = tmp_path / "card.png"
    assert cli("plot", "finding", sick, "-o", str(out), "--rule", "sinks", "--layer", "1").code == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    outcome = cli("plot", "finding", sick, "-o", str(out), "--rule", "collapsed")
    assert outcome.code == 2 and "nothing was found that could be drawn" in outcome.err
    outcome = cli("plot", "finding", sick, "-o", str(out), "--rule", "temperature")
    assert outcome.code == 2 and "ditscope calibrate toy" in outcome.err


def test_what_is_not_there_is_a_typed_error(cli, sick, tmp_path):
    assert cli("diagnose", str(tmp_path)).code == 3
    outcome = cli("diagnose", sick, "--rules", "gini")
    assert outcome.code == 2 and "there is no rule 'gini'" in outcome.err
