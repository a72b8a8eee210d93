"""`ditscope eval`: what is printed, what is written, and what is refused early."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ditscope as ds
from ditscope.evaluation.frechet import Gaussian, frechet_distance
from tests.evaluation.stand_in import LikeInception
from tests.evaluation.test_extractors import scripted

COLOURS = "tests.evaluation.stand_in:ColourMeans"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, with a folder of data."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(12):
            image = rng.integers(0, 256, (8, 12, 3), np.uint8)
            image[..., 0] = 60 * label
            Image.fromarray(image).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def measure(cli, place):
    """`ditscope eval` with the stand-in features and that data."""
    return lambda *more: cli("eval", *more, "--features", COLOURS, "--reference", "data")


def test_tables_for_people_and_a_file_with_everything(measure, place) -> None:
    code, out, err = measure("data", "--num-samples", "24")
    assert (code, err) == (0, "reference: 24 pictures\nsamples: 24 pictures\n")
    lines = out.splitlines()
    assert lines[0].split() == ["measure", "value", "95", "%", "interval"]
    assert lines[1].startswith("class accuracy") and "24 of 24 pictures" in lines[1]
    for word in ("Frechet distance", "unbiased", "precision", "recall", "worst classes", "bee"):
        assert word in out
    assert lines[-1] == "file       evaluations/data-1.json"
    tree = json.loads((place / "evaluations" / "data-1.json").read_text())
    assert tree["measures"]["frechet"]["distance"] == pytest.approx(0, abs=1e-9)
    assert measure("data").out.splitlines()[-1] == "file       evaluations/data-2.json"


def test_json_of_a_model_says_how_it_drew(measure, place, pipeline_folder) -> None:
    code, out, _ = measure(
        str(pipeline_folder), "--num-samples", "4", "--class", "bee", "--steps", "3",
        "--sampler", "unipc", "--cfg-scale", "1.5", "--seed", "7", "--dtype", "float32", "--json",
    )  # fmt: skip
    tree = json.loads(out)
    told = tree["samples"]
    assert code == 0 and tree["file"] == "evaluations/pipeline-1.json"
    assert told["sampler"]["name"] == "unipc" and told["evaluations"] == 3
    assert (told["seed"], told["guidance"]["scale"], told["count"]) == (7, 1.5, 4)
    assert [row["name"] for row in tree["measures"]["accuracy"]["classes"]] == ["bee"]


def test_statistics_are_kept_and_used_again(cli, measure, place) -> None:
    first = json.loads(measure("data", "--save-reference", "data.safetensors", "--json").out)
    again = cli(
        "eval", "data", "--features", COLOURS, "--reference", "data.safetensors", "--json",
        "--out", "again.json",
    )  # fmt: skip
    found = json.loads(again.out)
    assert again.err == "samples: 24 pictures\n" and Path("again.json").is_file()
    assert found["measures"] == first["measures"] and found["reference"] == first["reference"]


def test_the_bundled_classifier_judges_scenes(cli, place) -> None:
    code, out, _ = cli(
        "eval", "scenes", "--num-samples", "40", "--class", "fox", "--class", "rocket",
        "--reference-samples", "60", "--json",
    )  # fmt: skip
    tree = json.loads(out)
    accuracy = tree["measures"]["accuracy"]
    assert code == 0 and accuracy["share"] >= 0.95 and accuracy["count"] == 40
    assert tree["reference"]["class_names"] == ["fox", "rocket"]
    assert any("40 samples for 128 features" in note for note in tree["notes"])


def test_the_way_to_published_numbers_with_a_stand_in_for_inception(cli, place, pipeline_folder):
    """TorchScript that takes whole numbers, and mean and covariance as others store them."""
    scripted(LikeInception(), place / "inception.pt")
    np.savez(place / "virtual.npz", mu=np.full(3, 128.0), sigma=np.eye(3) * 900)
    code, out, _ = cli(
        "eval", str(pipeline_folder), "--num-samples", "25", "--steps", "2", "--seed", "0",
        "--features", "inception.pt", "--feature-pixels", "uint8", "--reference", "virtual.npz",
        "--dtype", "float32", "--json",
    )  # fmt: skip
    tree = json.loads(out)
    pipe = ds.load(pipeline_folder, dtype="float32")
    labels = [index % 5 for index in range(25)]
    means = ds.sample(pipe, labels, steps=2, seed=0).images.mean((1, 2))
    given = Gaussian.of(np.full(3, 128.0), np.eye(3) * 900)
    expected = frechet_distance(given, means.mean(0), np.cov(means.T))
    assert code == 0
    assert tree["measures"]["frechet"]["distance"] == pytest.approx(expected, rel=1e-5)
    assert tree["reference"]["source"]["kind"] == "statistics of another program"
    assert tree["measures"]["precision_recall"] is None and tree["measures"]["accuracy"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere",), 2, "'nowhere' is no model, run or folder of pictures"),
        (("data", "--steps", "3"), 2, "the pictures are drawn already"),
        (("data", "--num-samples", "99"), 3, "holds 24 pictures; expected 99 or more"),
        (("data", "--neighbours", "0"), 2, "greater than or equal to 1"),
        (("data", "--save-reference", "x.npz"), 2, "expected NAME.safetensors"),
        (("data", "--save-reference", "none/x.safetensors"), 4, "is missing or read-only"),
        (("data", "--out", "none/x.json"), 4, "is missing or read-only"),
        (("data", "--out", "data"), 2, "already exists"),
        (("data", "--dtype", "int8"), 2, "found int8; expected float32, bfloat16, float16"),
        (("data", "--feature-pixels", "bits"), 2, "found bits; expected uint8, unit, signed"),
    ],
)
def test_refuses_and_leaves_nothing(measure, place, arguments, code, message) -> None:
    outcome = measure(*arguments)
    assert (outcome.code, outcome.out) == (code, "") and message in outcome.err
    assert [path for path in place.rglob("*") if path.suffix in (".json", ".safetensors")] == []
