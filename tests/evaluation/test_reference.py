"""Statistics of data: computed, kept, read again, and refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadCheckpoint, BadDataset, BadRequest
from ditscope.evaluation.extractors import extractor
from ditscope.evaluation.reference import FACTS, load_reference, reference_of, save_reference
from ditscope.evaluation.sources import REFERENCE_SEED, SCENES_SEED

COLOURS = extractor("tests.evaluation.stand_in:ColourMeans")


def test_scenes_are_measured_as_numpy_would(tmp_path: Path) -> None:
    stages = []
    found = reference_of(
        "emoji", COLOURS, count=70, class_names=["owl", "fox"],
        report=lambda stage, done, total: stages.append((stage, done, total)),
    )  # fmt: skip
    scenes = EmojiScenes(seed=REFERENCE_SEED, size=64)
    shown = [scenes.class_names.index(name) for name in ("owl", "fox")]
    features, _ = COLOURS([scenes.scene(i, shown[i % 2]).image for i in range(70)])
    np.testing.assert_array_equal(found.features, features)
    np.testing.assert_allclose(found.mean, features.mean(axis=0, dtype=float), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.T.astype(float)), atol=1e-12)
    assert found.facts.class_names == ("owl", "fox") and found.facts.count == 70
    assert stages == [("reference", 64, 70), ("reference", 70, 70)]
    assert REFERENCE_SEED != SCENES_SEED


def test_classes_that_scenes_have_not_are_no_choice_of_them() -> None:
    found = reference_of("emoji", COLOURS, count=3, class_names=["owl", "unicorn"])
    assert found.facts.class_names == EmojiScenes.class_names


def test_what_is_kept_is_what_was_computed(tmp_path: Path) -> None:
    found = reference_of("emoji", COLOURS, count=30)
    file = tmp_path / "scenes.safetensors"
    save_reference(file, found)
    again = reference_of(file, COLOURS)
    assert again.facts == found.facts
    for name in ("mean", "covariance", "features"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
        assert getattr(again, name).dtype == getattr(found, name).dtype


def test_statistics_of_other_features_or_pixels_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "scenes.safetensors"
    save_reference(file, reference_of("emoji", COLOURS, count=5))
    with pytest.raises(BadRequest, match="made with size None, this evaluation has"):
        reference_of(file, extractor(COLOURS.protocol.name, size=32))
    with pytest.raises(BadRequest, match="made with sha256 "):
        reference_of(file, extractor("emoji"))
    with pytest.raises(BadRequest, match="reference_samples: are of a fixed set"):
        reference_of(file, COLOURS, count=3)


def test_statistics_of_other_programs(tmp_path: Path) -> None:
    file = tmp_path / "virtual.npz"
    covariance = np.diag([1.0, 2, 3]).astype(np.float32)
    unread = np.array([{"a": "pickle"}], dtype=object)
    np.savez(file, mu=np.arange(3.0), sigma=covariance, arr_0=unread, allow_pickle=True)
    found = reference_of(file, COLOURS)
    assert found.mean.tolist() == [0, 1, 2] and found.covariance.dtype == np.float64
    assert found.facts.count is None and len(found.features) == 0


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "cannot be read: .*sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 2))}, r"mean \(3,\) and covariance \(3, 2\)"),
        ({"mu": np.zeros((1, 3)), "sigma": np.eye(3)}, r"mean \(1, 3\)"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "holds NaN or Inf"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 1], [0, 1]])}, "is not symmetric"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "mu: object .*; expected numbers"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu: <U1 .*; expected numbers"),
        ({"mu": np.zeros(20_000), "sigma": np.eye(2)}, r"mu: float64 \(20000,\)"),
    ],
)
def test_archives_that_hold_something_else(arrays, message, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=message):
        reference_of(npz(tmp_path / "x.npz", **arrays), COLOURS)


def test_files_that_are_no_statistics(tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    with pytest.raises(BadDataset, match=r"text\.npz: cannot be read: File is not a zip file"):
        reference_of(text, COLOURS)
    with pytest.raises(BadDataset, match="cannot be read"):
        reference_of(tmp_path / "none.npz", COLOURS)
    weights = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"a": np.ones(3)}, weights)
    with pytest.raises(BadDataset, match="holds no statistics"):
        load_reference(weights)
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        load_reference(tmp_path / "none.safetensors")
    with pytest.raises(BadRequest, match="'nowhere' is no data"):
        reference_of("nowhere", COLOURS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros(5)}, r"mean \(5,\) and covariance \(6, 6\)"),
        ({"features": np.zeros((4, 2), np.float32)}, r"features of shape \(4, 2\)"),
        ({"covariance": None}, "cannot be read: 'covariance'"),
        ({"mean": np.full(6, np.inf)}, "holds NaN or Inf"),
    ],
)
def test_damaged_statistics(change, message, tmp_path: Path) -> None:
    found = reference_of("emoji", COLOURS, count=4)
    arrays = {name: getattr(found, name) for name in ("mean", "covariance", "features")} | change
    kept = {name: array for name, array in arrays.items() if array is not None}
    file = tmp_path / "damaged.safetensors"
    facts = {FACTS: json.dumps(found.facts.model_dump(mode="json"))}
    safetensors.numpy.save_file(kept, file, facts)
    with pytest.raises(BadDataset, match=message):
        load_reference(file)


def test_a_folder_and_its_pictures_one_by_one_have_one_digest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 5, 5, 3), np.uint8)
    for folder, order in (("one", (0, 1, 2)), ("two", (0, 1, 2)), ("three", (1, 0, 2))):
        (tmp_path / folder).mkdir()
        for number, index in enumerate(order):
            Image.fromarray(images[index]).save(tmp_path / folder / f"{number}.png")
    digests = [
        reference_of(tmp_path / name, COLOURS).facts.sha256 for name in ("one", "two", "three")
    ]
    assert digests[0] == digests[1] != digests[2]
