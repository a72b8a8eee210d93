"""The whole way from pictures to numbers with their protocol."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ditscope as ds
from ditscope.errors import BadRequest
from ditscope.evaluation.accuracy import wilson
from ditscope.evaluation.evaluate import Evaluation
from ditscope.evaluation.extractors import extractor
from ditscope.evaluation.frechet import Gaussian, frechet_distance
from ditscope.evaluation.manifold import precision_recall
from ditscope.evaluation.reference import Reference, reference_of
from tests.evaluation.stand_in import ColourMeans
from tests.sampling.conftest import write_pipeline

COLOURS = "tests.evaluation.stand_in:ColourMeans"
NAMES = ColourMeans.class_names


def coloured(folder: Path, reds: dict[str, list[float]], seed: int = 0) -> Path:
    """Class folders of pictures with these shares of red, and noise in the other colours."""
    rng = np.random.default_rng(seed)
    for name, shares in reds.items():
        (folder / name).mkdir(parents=True)
        for number, share in enumerate(shares):
            image = rng.integers(0, 256, (6, 6, 3), np.uint8)
            image[..., 0] = round(255 * share)
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path, Path]:
    """Samples in five classes against data that is alike; one of five dogs is too red."""
    place = tmp_path_factory.mktemp("evaluate")
    right = {name: [0.25 * label] * 5 for label, name in enumerate(NAMES)}
    data = coloured(place / "data", right, seed=1)
    wrong = {**right, "dog": [0.75, 0.75, 0.95, 0.75, 0.75]}
    samples = coloured(place / "samples", wrong)
    return ds.evaluate(samples, features=COLOURS, reference=data), samples, data


def test_the_numbers_are_those_of_the_definitions(evaluated) -> None:
    found, samples, data = evaluated
    extract = extractor(COLOURS)
    a, b = (reference_of(place, extract) for place in (data, samples))
    expected = frechet_distance(Gaussian.of(a.mean, a.covariance), b.mean, b.covariance)
    assert found.frechet.distance == pytest.approx(expected, rel=1e-9)
    assert found.precision_recall == precision_recall(a.features, b.features)
    assert (found.accuracy.correct, found.accuracy.count) == (24, 25)
    worst = found.accuracy.classes[0]
    assert (worst.name, worst.correct, worst.mistaken_for) == ("dog", 4, {"eel": 1})


def test_every_choice_is_written_beside_the_numbers(evaluated, tmp_path: Path) -> None:
    found, samples, data = evaluated
    found.save(tmp_path / "found.json")
    tree = json.loads((tmp_path / "found.json").read_text())
    assert tree["format"] == "ditscope-evaluation" and tree["notes"] == []
    assert tree["samples"]["folder"] == str(samples) and tree["samples"]["count"] == 25
    assert tree["reference"]["source"]["folder"] == str(data)
    for part in (tree["samples"], tree["reference"], tree["features"]):
        assert len(part["sha256"]) == 64
    features = tree["features"]
    assert (features["pixels"], features["size"], features["features"]) == ("unit", None, 6)
    accuracy = tree["measures"]["accuracy"]
    assert (accuracy["low"], accuracy["high"]) == wilson(24, 25)
    frechet = tree["measures"]["frechet"]
    assert frechet["low"] < frechet["unbiased"] < frechet["high"]


def test_a_model_is_drawn_from_and_its_protocol_says_how(tmp_path: Path) -> None:
    pipe = ds.load(write_pipeline(tmp_path / "pipeline", "flow"), dtype="float32")
    stages: list[tuple[str, float, int]] = []
    found = ds.evaluate(
        pipe, features=COLOURS, reference=coloured(tmp_path / "data", {"ant": [0.1] * 6}),
        num_samples=6, report=lambda *told: stages.append(told), steps=2, sampler="heun", seed=5,
    )  # fmt: skip
    told = found.samples
    assert told["weights_sha256"] == pipe.weights_sha256 and told["arithmetic"] == "float32"
    assert told["sampler"]["name"] == "heun" and told["evaluations"] == 3
    assert (told["seed"], told["guidance"]["scale"]) == (5, 2.0)
    assert found.accuracy.count == 6
    assert stages[0] == ("reference", 6, 6) and stages[-1] == ("samples", 6, 6)
    assert [done for stage, done, _ in stages if stage == "samples"][:2] == [2, 4]
    assert any("the reference shows 1 classes, the samples 5" in note for note in found.notes)
    assert any("a class has 1 samples, so that 3 neighbours" in note for note in found.notes)
    run = ds.sample(pipe, [*NAMES, "ant"], record=tmp_path / "run", steps=2, sampler="heun", seed=5)
    again = ds.evaluate(run, features=COLOURS, reference=tmp_path / "data")
    assert again.samples["sha256"] == found.samples["sha256"]
    assert again.frechet == found.frechet


def test_what_cannot_be_measured_is_none_and_said(tmp_path: Path) -> None:
    one = coloured(tmp_path / "one", {"unicorn": [0.3]})
    data = coloured(tmp_path / "data", {"ant": [0.1] * 5})
    found = ds.evaluate(one, features=COLOURS, reference=data)
    assert (found.accuracy, found.frechet, found.precision_recall) == (None, None, None)
    notes = "\n".join(found.notes)
    assert "the network cannot name unicorn" in notes
    assert "it takes two pictures or more" in notes
    assert "feature vectors of 5 pictures of the reference and 1 samples" in notes
    json.dumps(found.to_dict(), allow_nan=False)
    few = ds.evaluate(data / "ant", features=COLOURS, reference=data)
    assert few.frechet is not None and few.frechet.unbiased is None
    assert any("5 samples for 6 features" in note for note in few.notes)
    assert any("have no classes" in note for note in few.notes)


def test_features_of_another_width_are_known_at_the_first_batch(tmp_path: Path) -> None:
    """Not after hours of drawing."""
    pipe = ds.load(write_pipeline(tmp_path / "pipeline", "flow"), dtype="float32")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    done: list[float] = []
    with pytest.raises(BadRequest, match="6 features where the reference has 3"):
        ds.evaluate(
            pipe, features=COLOURS, reference=tmp_path / "other.npz", num_samples=30, steps=1,
            report=lambda _, pictures, total: done.append(pictures),
        )  # fmt: skip
    assert max(done) == 8


def test_data_against_itself_is_as_good_as_can_be(evaluated) -> None:
    _, _, data = evaluated
    given = reference_of(data, extractor(COLOURS))
    assert isinstance(given, Reference)
    found = ds.evaluate(data, features=extractor(COLOURS), reference=given, neighbours=1)
    assert found.frechet.distance == pytest.approx(0, abs=1e-9)
    assert (found.precision_recall.precision, found.precision_recall.recall) == (1, 1)
    assert found.accuracy.correct == found.accuracy.count == 25


def test_scores_without_names_count_as_the_samples_do(evaluated, monkeypatch) -> None:
    found, samples, data = evaluated
    monkeypatch.setattr(ColourMeans, "class_names", None)
    assert ds.evaluate(samples, features=COLOURS, reference=data).accuracy == found.accuracy
    (samples / "fox").mkdir()
    (samples / "ant" / "0.png").rename(samples / "fox" / "0.png")
    with pytest.raises(BadRequest, match="scores of 5 classes; expected 6"):
        ds.evaluate(samples, features=COLOURS, reference=data)
