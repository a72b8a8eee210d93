"""Feature extractors of every kind give the same numbers for the same network, or say why not."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditscope.core.atomic import file_sha256
from ditscope.errors import BadCheckpoint, BadRequest, NumericalError, ResourceError
from ditscope.evaluation.extractors import extractor
from tests.evaluation.onnx_file import UINT8, write_graph
from tests.evaluation.stand_in import ColourMeans, LikeInception

HERE = "tests.evaluation.stand_in"
FILE = Path(__file__).with_name("stand_in.py")


def pictures(count: int = 5, size: tuple[int, int] = (8, 12)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, *size, 3), np.uint8))


def scripted(network: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), path)
    return path


def colour_means(images: list[np.ndarray]) -> np.ndarray:
    scaled = np.stack(images).astype(np.float64) / 255
    return np.concatenate([scaled.mean((1, 2)), (scaled**2).mean((1, 2))], axis=1)


def test_one_network_as_python_object_file_and_torchscript(tmp_path: Path) -> None:
    images = pictures()
    by_name = extractor(f"{HERE}:ColourMeans")
    by_file = extractor(f"{FILE}:ColourMeans")
    by_script = extractor(str(scripted(ColourMeans(), tmp_path / "net.pt")), pixels="unit")
    for extract in (by_name, by_file, by_script):
        features, scores = extract(images)
        assert features.dtype == np.float32 and scores is not None and scores.shape == (5, 5)
        np.testing.assert_allclose(features, colour_means(images), rtol=1e-6)
    assert by_name.protocol.class_names == ColourMeans.class_names
    assert by_script.protocol.class_names is None
    assert by_name.protocol.sha256 == by_file.protocol.sha256
    assert by_script.protocol.sha256 == file_sha256(tmp_path / "net.pt")


def test_other_weights_are_another_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = extractor(f"{HERE}:ColourMeans").protocol.sha256
    from tests.evaluation import stand_in

    class Other(ColourMeans):
        def __init__(self) -> None:
            super().__init__()
            self.levels.data += 1

    monkeypatch.setattr(stand_in, "ColourMeans", Other)
    assert extractor(f"{HERE}:ColourMeans").protocol.sha256 != before


def test_a_file_like_the_usual_inception_is_asked_for_features(tmp_path: Path) -> None:
    file = scripted(LikeInception(), tmp_path / "inception.pt")
    images = pictures()
    features, scores = extractor(str(file), pixels="uint8")(images)
    assert scores is None
    np.testing.assert_allclose(features, np.stack(images).mean((1, 2)), rtol=1e-6)


def test_onnx_gives_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    images = pictures()
    file = write_graph(tmp_path / "net.onnx", ["GlobalAveragePool"])
    features, scores = extractor(str(file), pixels="unit")(images)
    assert scores is None and features.shape == (5, 3)
    np.testing.assert_allclose(features, colour_means(images)[:, :3], rtol=1e-6)
    signed, _ = extractor(str(file), pixels="signed")(images)
    np.testing.assert_allclose(signed, 2 * features - 1, atol=1e-6)


def test_onnx_files_that_are_none_or_take_something_else(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    whole = write_graph(tmp_path / "whole.onnx", ["Identity"], takes=UINT8, returns=UINT8)
    with pytest.raises(BadRequest, match="uint8: it says so"):
        extractor(str(whole), pixels="unit")
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    with pytest.raises(BadCheckpoint, match=r"text\.onnx: is not ONNX"):
        extractor(str(text), pixels="unit")


def test_without_onnxruntime_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    file = write_graph(tmp_path / "net.onnx", ["GlobalAveragePool"])
    with pytest.raises(ResourceError, match=r"needs onnxruntime.*\n.*pip install onnxruntime"):
        extractor(str(file), pixels="unit")


def test_pictures_are_resized_as_pillow_does_and_only_on_request() -> None:
    images = pictures(2, (20, 30))
    extract = extractor(f"{HERE}:ColourMeans", size=10)
    assert extract.protocol.size == (10, 10)
    cut = [
        np.asarray(
            Image.fromarray(image).resize((10, 10), Image.Resampling.BICUBIC, (5, 0, 25, 20))
        )
        for image in images
    ]
    np.testing.assert_allclose(extract(images)[0], colour_means(cut), rtol=1e-6)
    mixed = [*images, *pictures(1, (8, 8))]
    assert len(extract(mixed)[0]) == 3
    with pytest.raises(BadRequest, match=r"pictures of 2 sizes, such as \(8, 8\) and \(20, 30\)"):
        extractor(f"{HERE}:ColourMeans")(mixed)


def test_the_bundled_classifier_names_its_classes() -> None:
    extract = extractor("emoji")
    features, scores = extract(pictures(3, (64, 64)))
    names = extract.protocol.class_names
    assert features.shape == (3, 128) and scores is not None and names is not None
    assert scores.shape == (3, len(names))
    larger = [np.kron(image, np.ones((2, 2, 1), np.uint8)) for image in pictures(1, (64, 64))]
    assert extract(larger)[0].shape == (1, 128)


@pytest.mark.parametrize(
    ("name", "pixels", "size", "error", "message"),
    [
        ("emojis", None, None, BadRequest, "found 'emojis'; expected emoji, a .pt or .onnx file"),
        ("emoji", "unit", None, BadRequest, "says itself what it takes"),
        ("none.pt", "unit", None, BadCheckpoint, r"none\.pt: cannot be read: No such file"),
        ("none.pt", None, None, BadRequest, "does not say which pixels it takes"),
        ("none.onnx", "unit", None, BadCheckpoint, r"none\.onnx: cannot be read"),
        ("none.pt", "bytes", None, BadRequest, "found bytes; expected uint8, unit, signed"),
        ("none.pt", "unit", 0, BadRequest, "found 0; expected 1 to 4096"),
        ("no.such.module:x", None, None, BadRequest, "fails: ModuleNotFoundError: No module named"),
        ("none.py:x", None, None, BadRequest, r"none\.py: features: no such file"),
        ("sys:exit", None, None, BadRequest, "sys has no source file"),
        (f"{HERE}:Failing", None, None, BadRequest, "fails: OSError: no weights here"),
        (f"{HERE}:nothing", None, None, BadRequest, "has no 'nothing'"),
        (f"{HERE}:NOT_A_NETWORK", None, None, BadRequest, "cannot be called"),
        (f"{HERE}:silent", None, None, BadRequest, "does not say which pixels it takes"),
    ],
)
def test_what_cannot_be_an_extractor(name, pixels, size, error, message) -> None:
    with pytest.raises(error, match=message):
        extractor(name, pixels=pixels, size=size)


def test_a_file_of_broken_python_is_the_user_s(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(:")
    with pytest.raises(BadRequest, match=r"mine\.py:f fails: SyntaxError"):
        extractor(f"{tmp_path / 'mine.py'}:f")


def test_a_file_that_is_no_torchscript(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(2)}, file)
    with pytest.raises(BadCheckpoint, match=r"weights\.pt: is not TorchScript"):
        extractor(str(file), pixels="unit")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("broken", BadRequest, r"returned \(\) as features of 2 pictures"),
        ("infinite", NumericalError, "NaN or Inf in the features"),
    ],
)
def test_what_an_extractor_may_not_return(name, error, message) -> None:
    with pytest.raises(error, match=message):
        extractor(f"{HERE}:{name}")(pictures(2))


def test_a_network_that_fails_is_named(tmp_path: Path) -> None:
    file = scripted(torch.nn.Conv2d(4, 2, 3), tmp_path / "four.pt")
    with pytest.raises(BadRequest, match=r"four\.pt: features: fails on pictures \(2, 3, 8, 12\)"):
        extractor(str(file), pixels="unit")(pictures(2))
