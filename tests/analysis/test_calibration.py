"""Healthy runs become a calibration; what departs from it is found, and where it began."""

import json
import math

import numpy as np
import pytest

import ditscope as ds
from ditscope.analysis.diagnose.calibrating import LEVELS, calibrated
from ditscope.analysis.diagnose.calibration import (
    calibration_path,
    read_calibration,
    write_calibration,
)
from ditscope.analysis.diagnose.engine import RULES
from ditscope.analysis.diagnose.reference import Reference, interpolated
from ditscope.analysis.diagnose.seen import Seen
from ditscope.core.bundled import bundled_folder
from ditscope.errors import BadConfig, BadRequest
from tests.analysis.constructed import with_statistics

LAYERS, HEADS, SAMPLES = 4, 3, 4
LOG_N, RMS = math.log(20), math.sqrt((16 + 25 - 2) / 6)
CLASSES = ("fox", "bus", "owl", "tent")


def numbers(seed, steps=12, samples=SAMPLES, classes=None):
    """A model with heads that differ, classes that differ, and pictures that differ a little."""
    model = np.random.default_rng(0)
    head = model.uniform(0.3, 0.8, (LAYERS, HEADS))
    reach = model.uniform(0.2, 0.9, (LAYERS, HEADS))
    own = model.normal(size=(len(CLASSES), LAYERS, HEADS))
    random = np.random.default_rng(seed)
    shape = (steps, 2, samples, LAYERS, HEADS)
    classes = np.arange(samples) % len(CLASSES) if classes is None else np.array(classes)
    noise = np.linspace(1, 1 / steps, steps)[:, None, None, None, None]
    picture = 0.02 * random.normal(size=(1, 1, samples, LAYERS, HEADS))
    of_class = 0.05 * own[classes][None, None] * np.array([1.0, 0.0])[:, None, None, None]
    wobble = 1 + picture + of_class + 0.005 * random.normal(size=shape)
    fall = 0.8 + 0.2 * noise
    return {
        "entropy": LOG_N * head * fall * wobble,
        "rms_distance": RMS * reach * fall * (1 + picture + 0.01 * random.normal(size=shape)),
        "received_max": (0.08 + 0.05 * head) * (1 + picture + 0.01 * random.normal(size=shape)),
    }


def run_of(path, seed, *, change=None, names=CLASSES, **options):
    values = numbers(seed, **options)
    if change:
        change(values)
    samples = values["entropy"].shape[2]
    return with_statistics(path, values, labels=[names[i % len(names)] for i in range(samples)])


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    seen = [Seen(run_of(folder / str(i), 100 + i, steps=12 if i % 2 else 20)) for i in range(12)]
    return calibrated(seen, RULES.values(), {"float32": "0" * 64})


def diagnosed(path, calibration, seed=7, **options):
    return ds.diagnose(run_of(path, seed, **options), calibration=calibration)


def sharper(values):
    values["entropy"][4:, :, :, 2] *= 0.75


def reinitialised(values):
    for name, value in {"entropy": LOG_N * 0.93, "rms_distance": RMS, "received_max": 0.06}.items():
        values[name][..., 1, :] = value * (1 + 0.001 * np.arange(HEADS))
        values[name][..., 2:, :] *= 1.2 if name == "received_max" else 1.0


def other_weights(values):
    values["rms_distance"] *= 1.7
    values["received_max"] *= 0.5


def shuffled(values):
    values["rms_distance"][:] = RMS * (1 + 0.002 * np.arange(HEADS))


def test_healthy_runs_stay_healthy(tmp_path, calibration):
    for seed in range(5):
        found = diagnosed(tmp_path / str(seed), calibration, seed)
        assert [f.rule for f in found.findings] == [], seed
        assert {"temperature", "out-of-line", "positions", "class-unlike"} <= set(found.checked)


@pytest.mark.parametrize(
    ("change", "rule", "where"),
    [
        (sharper, "temperature", {"layer": 2, "steps": (4, 11)}),
        (reinitialised, "out-of-line", {"layer": 1, "steps": (0, 11)}),
        (other_weights, "out-of-line", {"layer": None, "steps": (0, 11)}),
        (shuffled, "positions", {"layer": None, "steps": (0, 11)}),
    ],
)
def test_what_departs_from_healthy_runs_is_found_where_it_began(
    tmp_path, calibration, change, rule, where
):
    found = diagnosed(tmp_path / "run", calibration, change=change)
    finding = next(f for f in found.findings if f.rule == rule)
    assert {key: getattr(finding, key) for key in where} == where
    assert finding.severity == "error" and finding.measured > finding.threshold.value
    assert finding.threshold.origin.startswith("calibrated: the largest of 48 healthy pictures")
    assert finding.curve is not None and len(finding.curve.values) == 12


def test_the_advice_undoes_the_temperature(tmp_path, calibration):
    found = diagnosed(tmp_path / "run", calibration, change=sharper).findings[0]
    assert found.command.endswith("--attention-debug --temperature 3 --temperature-layers 2")
    less = 0.25 * numbers(7)["entropy"][4, 0, :, 2].mean()
    assert f"sharper than in healthy runs, by {less:.1f}" in found.message


def test_pictures_under_other_names_are_unlike_their_class(tmp_path, calibration):
    turned = ("bus", "owl", "tent", "fox")
    found = diagnosed(tmp_path / "run", calibration, names=turned, samples=8)
    unlike = [f for f in found.findings if f.rule == "class-unlike"]
    assert len(unlike) == 4 and {f.severity for f in unlike} == {"warning"}
    assert any("of bus" in f.message and "like fox" in f.message for f in unlike)


def test_branches_that_hardly_differ_need_a_calibration_to_be_found(tmp_path, calibration):
    def alike(values):
        for array in values.values():
            array[:, 0] = array[:, 1] + 0.02 * (array[:, 0] - array[:, 1])

    run = run_of(tmp_path / "run", 7, change=alike)
    assert "branches" not in [f.rule for f in ds.diagnose(run).findings]
    found = ds.diagnose(run, calibration=calibration)
    assert "branches" in [f.rule for f in found.findings]


def test_mean_and_deviation_are_those_of_the_pictures(tmp_path, calibration):
    """Against numpy over all pictures that have a step at the highest noise level."""
    arrays = [numbers(100 + i, steps=12 if i % 2 else 20)["entropy"][0, 0] for i in range(12)]
    pictures = np.concatenate(arrays)  # (picture, layer, head) at noise level 1
    spread = calibration.statistics["cond"]
    mean = np.array(spread.mean).reshape(spread.shape)[calibration.metrics.index("entropy"), -1]
    sd = np.array(spread.sd).reshape(spread.shape)[calibration.metrics.index("entropy"), -1]
    np.testing.assert_allclose(mean, pictures.mean(0), rtol=1e-3)
    np.testing.assert_allclose(sd, pictures.std(0, ddof=1), rtol=1e-3)
    assert LEVELS[-1] == 1


def test_departures_are_deviations_from_the_mean(tmp_path, calibration):
    seen = Seen(run_of(tmp_path / "run", 3), Reference(calibration))
    found = seen.departures().sel(metric="entropy", step=0).values
    own = numbers(3)["entropy"][0, 0].astype(np.float32).astype(float)
    arrays = [numbers(100 + i, steps=12 if i % 2 else 20)["entropy"][0, 0] for i in range(12)]
    pictures = np.concatenate(arrays)
    sd = np.maximum(pictures.std(0, ddof=1), 0.02 * pictures.mean(0))
    np.testing.assert_allclose(found, (own - pictures.mean(0)) / sd, rtol=0.02, atol=0.05)


def test_between_levels_lies_a_straight_line():
    levels = np.array([0.0, 0.25, 1.0])
    values = np.random.default_rng(0).normal(size=(3, 2))
    at = np.array([-1.0, 0.0, 0.1, 0.25, 0.7, 1.0, 2.0])
    expected = np.stack([np.interp(at, levels, column) for column in values.T], axis=1)
    np.testing.assert_allclose(interpolated(levels, values, at), expected)


def test_a_calibration_is_written_and_read(tmp_path, calibration):
    write_calibration(tmp_path / "calibration.json", calibration)
    assert read_calibration(tmp_path / "calibration.json") == calibration


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("format", lambda tree: tree.update(format="ditscope-run")),
        ("levels", lambda tree: tree["levels"].reverse()),
        ("statistics.cond", lambda tree: tree["statistics"]["cond"]["mean"].pop()),
        ("classes.bus", lambda tree: tree["classes"]["bus"]["mean"].pop()),
        ("colour", lambda tree: tree.update(colour="red")),
    ],
)
def test_a_damaged_calibration_names_its_field(tmp_path, calibration, field, change):
    tree = json.loads(calibration.model_dump_json())
    change(tree)
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(tree))
    with pytest.raises(BadConfig) as caught:
        read_calibration(file)
    assert caught.value.field == field and str(file) in str(caught.value)


def beside(folder, calibration, weights):
    """A run whose model is a folder that has this calibration, of weights with this digest."""
    write_calibration(
        folder / "calibration.json", calibration.model_copy(update={"weights": weights})
    )
    run = run_of(folder / "run", 7)
    run.manifest = run.manifest.model_copy(
        update={"model": run.manifest.model.model_copy(update={"source": str(folder)})}
    )
    return run


def test_the_calibration_beside_the_model_is_used(tmp_path, calibration):
    run = beside(tmp_path, calibration, {"float32": "0" * 64})
    found = ds.diagnose(run)
    assert found.calibration.startswith("48 healthy pictures of toy, 12 steps or more")
    assert "temperature" in found.checked


def test_a_calibration_of_other_weights_is_named_and_not_used(tmp_path, calibration):
    found = ds.diagnose(beside(tmp_path, calibration, {"float32": "1" * 64}))
    assert "calibration.json is of other weights than the run" in found.calibration
    assert f"ditscope calibrate {tmp_path}" in found.calibration
    assert "temperature" in found.skipped and "temperature" not in found.checked


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("steps", (13, 20), "the run has 12 steps, the calibration at least 13"),
        ("cfg_scale", (4.0, 5.0), "the run has guidance 3, the calibration 4 to 5"),
        ("samplers", ("heun",), "the run was drawn with euler, the calibration with heun"),
    ],
)
def test_settings_that_were_not_calibrated(tmp_path, calibration, field, value, words):
    settings = calibration.settings.model_copy(update={field: value})
    other = calibration.model_copy(update={"settings": settings})
    found = ds.diagnose(beside(tmp_path, other, {"float32": "0" * 64}))
    assert found.calibration == f"not used: {words}"


def test_without_a_calibration_that_is_said(tmp_path):
    found = ds.diagnose(run_of(tmp_path / "run", 7))
    assert found.calibration.startswith("none: ") and "ditscope calibrate toy" in found.calibration
    assert found.skipped["temperature"].startswith("only healthy runs of the same model can tell")


def test_where_a_calibration_is():
    assert calibration_path("emoji") == bundled_folder("emoji") / "calibration.json"
    assert str(calibration_path("a/b.pt")) == "a/b.calibration.json"
    assert str(calibration_path("emoji", "w/x.safetensors")) == "w/x.calibration.json"


def test_too_few_or_unlike_runs_are_refused(tmp_path):
    one = Seen(run_of(tmp_path / "one", 1))
    other = Seen(with_statistics(tmp_path / "other", {"entropy": np.ones((3, 2, 2, 1, 1))}))
    with pytest.raises(BadRequest, match="found 1 runs"):
        calibrated([one], RULES.values(), {})
    with pytest.raises(BadRequest, match="different networks"):
        calibrated([one, other], RULES.values(), {})
