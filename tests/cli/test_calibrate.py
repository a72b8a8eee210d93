"""`ditscope calibrate`: healthy runs beside the model, by which `ditscope diagnose` judges."""

import json
import shutil

import pytest

from ditscope.analysis.diagnose.calibration import calibration_path, read_calibration
from ditscope.cli.calibrate import digests


@pytest.fixture(scope="module")
def calibrated(pipeline_folder, tmp_path_factory):
    """A copy of the pipeline folder with its calibration."""
    from ditscope.cli.main import app, run

    folder = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(pipeline_folder, folder)
    assert run(app, ["calibrate", str(folder), "--num-samples", "16"]) == 0
    return folder


def sample(cli, model, out, *options):
    cli("sample", "--model", str(model), "--steps", "10", "--cfg-scale", "2", "--num-samples", "2",
        "--attention-debug", "--out", str(out), *options)  # fmt: skip
    return str(out)


def test_it_is_used_by_diagnose(cli, calibrated, tmp_path):
    found = read_calibration(calibrated / "calibration.json")
    assert found.settings.pictures == 16 and found.settings.steps == (10, 20)
    assert {"temperature", "out-of-line", "branches"} <= set(found.rules)
    path = sample(cli, calibrated, tmp_path / "run", "--seed", "9")
    tree = json.loads(cli("diagnose", path, "--json").out)
    assert tree["calibration"].startswith("16 healthy pictures of model, 10 steps or more")
    assert "temperature" in tree["checked"]
    out = cli("diagnose", path).out
    assert "calibration: 16 healthy pictures of model" in out


def test_the_command_says_what_was_made(cli, pipeline_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    out = tmp_path / "elsewhere.json"
    made = cli("calibrate", str(folder), "--num-samples", "16", "--out", str(out), "--json")
    assert json.loads(made.out) == {"file": str(out), "pictures": 16}
    assert not (folder / "calibration.json").exists()
    path = sample(cli, folder, tmp_path / "run")
    assert "calibration: none: " in cli("diagnose", path).out
    words = cli("diagnose", path, "--calibration", str(out)).out
    assert "calibration: 16 healthy pictures" in words


def test_other_weights_make_it_stale(cli, calibrated, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(calibrated, folder)
    tree = json.loads((folder / "calibration.json").read_text())
    tree["weights"] = {name: "0" * 64 for name in tree["weights"]}
    (folder / "calibration.json").write_text(json.dumps(tree))
    outcome = cli("diagnose", sample(cli, folder, tmp_path / "run"))
    assert "not used: " in outcome.out and "is of other weights than the run" in outcome.out


def test_what_is_no_calibration_is_refused(cli, calibrated, tmp_path):
    path = sample(cli, calibrated, tmp_path / "run")
    outcome = cli("diagnose", path, "--calibration", str(tmp_path / "none.json"))
    assert outcome.code == 2 and "none.json" in outcome.err
    outcome = cli("calibrate", str(calibrated), "--num-samples", "3")
    assert outcome.code == 2


def test_the_shipped_calibration_is_that_of_the_shipped_weights():
    """If this fails the weights are new: `ditscope calibrate emoji` makes it anew."""
    assert read_calibration(calibration_path("emoji")).weights == digests("emoji", None)
