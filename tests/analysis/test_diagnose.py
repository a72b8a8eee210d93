"""Faults planted in healthy numbers are found, and where; healthy runs have no findings."""

import json
import math
import shlex

import numpy as np
import pytest

import ditscope as ds
from ditscope.analysis.diagnose.engine import RULES
from ditscope.analysis.diagnose.schema import DiagnosisRecord, schema
from ditscope.errors import BadRequest
from tests.analysis.constructed import with_statistics
from tests.analysis.recorded import record
from tests.contracts.tree import ROOT

STEPS, SAMPLES, LAYERS, HEADS = 12, 4, 3, 4
CALIBRATED = {"temperature", "out-of-line", "positions", "class-unlike"}
MAPS = {"background", "lost-object", "broken-object", "asymmetric"}
UNASKED = CALIBRATED | MAPS | {"silent-heads"}
"""Rules that these runs cannot answer: no calibration, no stored maps, no output_norm."""
LOG_N = math.log(20)  # 4 x 5 patches
RMS = math.sqrt((16 + 25 - 2) / 6)


def healthy(seed=0, branches=2):
    """Numbers as a trained model has them: they differ everywhere and move with the steps."""
    random = np.random.default_rng(seed)
    shape = (STEPS, branches, SAMPLES, LAYERS, HEADS)
    fall = np.linspace(1, 0.8, STEPS)[:, None, None, None, None]
    head = random.uniform(0.4, 0.9, (LAYERS, HEADS))
    wobble = 1 + 0.01 * random.normal(size=shape)
    return {
        "entropy": LOG_N * head * fall * wobble,
        "rms_distance": RMS * (0.3 + head) * fall * (2 - wobble),
        "received_max": 0.05 + 0.05 * head * wobble,
    }


def diagnosed(path, values, **options):
    return ds.diagnose(with_statistics(path, values, **options))


def nan(values):
    values["entropy"][5:7, 0, 2, 1, 3] = np.nan


def branches(values):
    for array in values.values():
        array[:, 1] = array[:, 0] * (1 + 1e-6)


def copied(values):
    for array in values.values():
        array[5, :, :, 2] = array[4, :, :, 2]
        array[6, :, :, 2] = array[4, :, :, 2]


def collapsed(values):
    values["entropy"][:, :, :, 1] = 0.1 * values["entropy"][:, :, :, 1] / LOG_N


def diffuse(values):
    values["entropy"][4:, :, :, 0] = LOG_N * (0.98 + 0.005 * values["entropy"][4:, :, :, 0] / LOG_N)


def dead(values):
    values["entropy"][..., 1, [0, 2]] = LOG_N * 0.9999
    values["rms_distance"][..., 1, [0, 2]] = RMS
    values["received_max"][..., 1, [0, 2]] = 1 / 20


def redundant(values):
    for array in values.values():
        array[..., 2, 3] = array[..., 2, 1]


def still(values):
    for array in values.values():
        array[:] = array[:1] * (1 + 1e-4 * np.arange(STEPS)[:, None, None, None, None])


def saturated(values):
    values["entropy"][2:, :, :, 1, 3] *= 0.005 / LOG_N


def silent(values):
    values["output_norm"] = 3 + values["entropy"]
    values["output_norm"][5:, :, :, 0, 1:3] = 1e-6


def reversed_phases(values):
    values["rms_distance"][:] = values["rms_distance"][::-1].copy()


def sinks(values):
    values["received_max"][3:, :, :, 1, 2] = 0.8 - 0.01 * values["received_max"][3:, :, :, 1, 2]


FAULTS = {
    "not-finite": (nan, {"layer": 1, "heads": (3,), "steps": (5, 6), "branch": "cond"}),
    "branches": (branches, {"layer": None, "steps": (0, 11)}),
    "copied-steps": (copied, {"layer": 2, "steps": (5, 6)}),
    "collapsed": (collapsed, {"layer": 1, "steps": (0, 11)}),
    "diffuse": (diffuse, {"layer": 0, "steps": (4, 11)}),
    "dead-heads": (dead, {"layer": 1, "heads": (0, 2)}),
    "saturated": (saturated, {"layer": 1, "heads": (3,), "steps": (2, 11)}),
    "silent-heads": (silent, {"layer": 0, "heads": (1, 2), "steps": (5, 11)}),
    "redundant-heads": (redundant, {"layer": 2, "heads": (1, 3)}),
    "phases": (still, {"severity": "error"}),
    "phases ": (reversed_phases, {"severity": "warning"}),
    "sinks": (sinks, {"layer": 1, "heads": (2,), "steps": (3, 11), "severity": "warning"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_located_and_nothing_else_is(tmp_path, name):
    plant, where = FAULTS[name]
    values = healthy()
    plant(values)
    found = diagnosed(tmp_path / "run", values)
    (finding,) = found.findings
    assert finding.rule == name.strip()
    assert {key: getattr(finding, key) for key in where} == where
    assert not found.healthy and set(found.skipped) == UNASKED - {name}
    assert set(found.checked) == set(RULES) - UNASKED | {name.strip()}


@pytest.mark.parametrize("seed", range(5))
def test_healthy_runs_have_no_findings(tmp_path, seed):
    found = diagnosed(tmp_path / "run", healthy(seed))
    assert found.healthy and found.checked == tuple(r for r in RULES if r not in UNASKED)


def test_every_rule_has_a_fault_that_it_finds():
    elsewhere = CALIBRATED | MAPS | {"census"}  # in test_calibration, test_object_rules and below
    assert {name.strip() for name in FAULTS} == set(RULES) - elsewhere


@pytest.mark.parametrize(
    ("plant", "measured"),
    [(diffuse, lambda v: v["entropy"][4:, 0, :, 0].mean() / LOG_N), (nan, lambda v: 2)],
)
def test_the_number_is_the_one_of_the_run(tmp_path, plant, measured):
    values = healthy()
    plant(values)
    (finding,) = diagnosed(tmp_path / "run", values).findings
    assert finding.measured == pytest.approx(measured(values), rel=1e-5)
    if finding.low is not None:
        assert finding.low < finding.measured < finding.high


def test_errors_come_before_warnings(tmp_path):
    values = healthy()
    dead(values)
    sinks(values)
    found = diagnosed(tmp_path / "run", values)
    assert [finding.rule for finding in found.findings] == ["dead-heads", "sinks"]


def test_advice_is_a_command_that_can_be_typed(tmp_path):
    values = healthy()
    nan(values)
    (finding,) = diagnosed(tmp_path / "run", values, labels=["dog face", "a; rm x"] * 2).findings
    words = shlex.split(finding.command)
    assert words[:4] == ["ditscope", "sample", "--model", "toy"]
    assert words[4:8] == ["--class", "dog face", "--class", "a; rm x"]
    assert words[-3:] == ["--attention-debug", "--dtype", "float32"]
    assert shlex.split(finding.evidence)[:2] == ["ditscope", "plot"]


@pytest.mark.parametrize("steps", [1, 2])
def test_short_runs_without_guidance_say_what_was_not_asked(tmp_path, steps):
    values = {name: array[:steps, :, :1] for name, array in healthy(branches=1).items()}
    found = diagnosed(tmp_path / "run", values)
    assert found.healthy
    assert set(found.skipped) == UNASKED | {"branches", "phases"}
    assert "--qk-steps" in found.skipped["background"]
    assert "--metrics output_norm" in found.skipped["silent-heads"]
    assert "ditscope calibrate toy" in found.skipped["temperature"]
    assert "--cfg-scale" in found.skipped["branches"] and "--steps 20" in found.skipped["phases"]


def test_missing_statistics_are_said(tmp_path):
    found = diagnosed(tmp_path / "run", {"received_max": healthy()["received_max"]})
    assert {"collapsed", "diffuse", "dead-heads"} <= set(found.skipped)
    assert "recorded no entropy" in found.skipped["diffuse"]
    with pytest.raises(BadRequest, match="recorded no statistics"):
        ds.diagnose(record(tmp_path / "bare", layers=1, steps=1, kept=False))


def test_rules_can_be_chosen(tmp_path):
    values = healthy()
    dead(values)
    run = with_statistics(tmp_path / "run", values)
    assert ds.diagnose(run, ["sinks"]).healthy
    assert ds.diagnose(run, ["sinks", "dead-heads"]).checked == ("dead-heads", "sinks")
    for rules, words in ((["gini"], "there is no rule 'gini'"), ([], "no rule is named")):
        with pytest.raises(BadRequest, match=f"rules: {words}; expected some of not-finite, cens"):
            ds.diagnose(run, rules)


@pytest.mark.parametrize("name", FAULTS)
def test_a_diagnosis_is_plain_data(tmp_path, name):
    values = healthy()
    FAULTS[name][0](values)
    tree = json.loads(json.dumps(diagnosed(tmp_path / "run", values).to_dict(), allow_nan=False))
    DiagnosisRecord.model_validate_json(json.dumps({"run": "x", **tree}), strict=True)
    assert (tree["format"], tree["version"], tree["healthy"]) == ("ditscope-diagnosis", 2, False)
    (finding,) = tree["findings"]
    assert finding["threshold"]["origin"] and finding["message"] and finding["place"]


def test_layers_with_fewer_heads_and_one_patch_are_no_fault(tmp_path):
    values = {name: array[:2, :1, :1, :1, :1] * 0 for name, array in healthy().items()}
    values["received_max"] += 1
    values["received_max"][1] += 1e-3
    found = diagnosed(tmp_path / "run", values, grid=(1, 1))
    assert [f.rule for f in found.findings if f.rule != "copied-steps"] == []


def test_what_cannot_be_measured_is_not_called_broken(tmp_path):
    """The first step has no step before it; only infinity would be wrong there."""
    values = healthy()
    values["step_overlap"] = np.full_like(values["entropy"], np.nan)
    values["mass_class"] = np.full_like(values["entropy"], np.nan)
    assert diagnosed(tmp_path / "run", values).healthy
    values["step_overlap"][3, 0, 0, 1, 2] = np.inf
    (finding,) = diagnosed(tmp_path / "other", values).findings
    assert (finding.rule, finding.layer, finding.heads) == ("not-finite", 1, (2,))
    assert (finding.steps, finding.measured) == ((3, 3), 1)


def test_the_command_of_a_finding_draws_the_pictures_again(tmp_path):
    values = healthy()
    nan(values)
    (finding,) = diagnosed(tmp_path / "run", values).findings
    manifest = ds.open_run(tmp_path / "run").manifest
    words = shlex.split(finding.command)
    classes = [words[i + 1] for i, word in enumerate(words) if word == "--class"]
    assert classes == [label.name for label in manifest.labels]
    for option, wanted in {
        "--sampler": manifest.sampler.name,
        "--steps": str(manifest.sampler.steps),
        "--seed": str(manifest.seed),
        "--batch-size": str(len(manifest.batches[0])),
    }.items():
        assert words[words.index(option) + 1] == wanted


def with_config(run, **config):
    model = run.manifest.model.model_copy(update={"config": config})
    run.manifest = run.manifest.model_copy(update={"model": model})
    return run


def test_layers_that_were_not_seen_are_named(tmp_path):
    run = with_statistics(tmp_path / "run", healthy())
    assert ds.diagnose(with_config(run, depth=LAYERS, num_heads=HEADS), ["census"]).healthy
    (finding,) = ds.diagnose(with_config(run, depth=5, num_heads=HEADS), ["census"]).findings
    assert finding.message == "3 attention calls were seen, the network has 5 blocks"
    assert (finding.measured, finding.place()) == (2, "the whole run")
    found = ds.diagnose(with_config(run, depth=LAYERS, num_heads=6), ["census"]).findings
    assert [each.layer for each in found] == [0, 1, 2] and "has 4 heads" in found[0].message


def test_the_published_schema_is_that_of_the_output():
    """`python -m ditscope.analysis.diagnose.schema` writes it."""
    published = (ROOT / "docs" / "diagnosis.schema.json").read_text(encoding="utf-8")
    assert published == schema()


def test_every_rule_says_what_it_asks_and_measures():
    for rule in RULES.values():
        assert rule.question.endswith("?") and len(rule.measurement) > 20, rule.name
        assert rule.threshold is None or rule.threshold.origin, rule.name
