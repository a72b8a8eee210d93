"""Where pictures come from: each gives what it says, in its order, under the right names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadDataset, BadRequest
from ditscope.evaluation import sources
from ditscope.evaluation.sources import Source, source_of
from ditscope.pipeline import load
from ditscope.sampling.draw import sample
from tests.sampling.conftest import LABELS, write_pipeline

SETTINGS: dict[str, object] = {"steps": 2, "seed": 3, "batch_size": 4}


def all_of(source: Source) -> tuple[list[np.ndarray], list[str] | None]:
    """Pictures and their class names; progress must only grow, up to the number of pictures."""
    seen: list[float] = []
    pictures: list[np.ndarray] = []
    for batch in source.batches(seen.append):
        pictures += batch
    assert seen == sorted(seen) and seen[-1] == source.count == len(pictures)
    if source.labels is None:
        return pictures, None
    assert len(source.labels) == source.count
    return pictures, [source.class_names[label] for label in source.labels]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sources") / "pipeline", "flow")


def test_a_model_draws_what_sample_draws(pipeline: Path) -> None:
    pictures, names = all_of(source_of(pipeline, 7, settings=SETTINGS, dtype="float32"))
    drawn = sample(load(pipeline, dtype="float32"), [*LABELS, *LABELS[:2]], **SETTINGS)
    assert np.array_equal(pictures, drawn.images)
    assert names == [*LABELS, *LABELS[:2]]


def test_a_model_draws_ten_of_every_class_or_of_those_named(pipeline: Path) -> None:
    pipe = load(pipeline, dtype="float32")
    assert source_of(pipe).count == 50
    some = source_of(pipe, 3, classes=["dog", 1], settings=SETTINGS)
    assert (some.class_names, source_of(pipe, classes=["dog"]).count) == (("dog", "bee"), 10)
    assert all_of(some)[1] == ["dog", "bee", "dog"]


def test_a_run_shows_its_pictures_and_how_they_were_made(pipeline: Path, tmp_path: Path) -> None:
    pipe = load(pipeline, dtype="float32")
    run = sample(pipe, ["cat", "ant", "cat"], record=tmp_path / "run", cfg_scale=3, **SETTINGS)
    for given in (run, tmp_path / "run", str(tmp_path / "run")):
        pictures, names = all_of(source_of(given))
        assert np.array_equal(pictures, run.images) and names == ["cat", "ant", "cat"]
    told = source_of(run, 2).protocol
    assert told["run_sha256"] == run.digest and told["seed"] == 3 and told["evaluations"] == 2
    drawn = source_of(pipe, 3, settings={**SETTINGS, "cfg_scale": 3}).protocol
    same = told.keys() & drawn.keys() - {"kind"}
    assert len(same) > 10 and {key: told[key] for key in same} == {key: drawn[key] for key in same}
    with pytest.raises(BadRequest, match="the run has 3 pictures; expected 4 or more"):
        source_of(run, 4)


def test_folders_with_and_without_classes(tmp_path: Path) -> None:
    rng, saved = np.random.default_rng(0), {}
    for name in ("b/1", "b/2", "a/1", "a/2", "a/3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = rng.integers(0, 256, (6, 7, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        saved[name] = image.tobytes()
    pictures, names = all_of(source_of(tmp_path))
    assert names is not None and names != sorted(names) and pictures[0].shape == (6, 7, 3)
    shown = sorted((name, image.tobytes()) for name, image in zip(names, pictures, strict=True))
    assert shown == sorted((name[0], data) for name, data in saved.items())
    assert np.array_equal(pictures, all_of(source_of(tmp_path))[0])
    spread, names = all_of(source_of(tmp_path, 2))
    assert {image.tobytes() for image in spread} == {saved["a/1"], saved["a/3"]}
    flat, names = all_of(source_of(tmp_path / "b"))
    assert names is None and {image.tobytes() for image in flat} == {saved["b/1"], saved["b/2"]}


def test_folders_that_hold_no_pictures_or_broken_ones(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="holds no folders"):
        source_of(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadDataset, match=r"bad\.png: is none of .*\n  remove it, or mend it"):
        all_of(source_of(tmp_path))
    with pytest.raises(BadDataset, match="holds 2 pictures; expected 3 or more"):
        source_of(tmp_path, 3)


def test_scenes_are_those_of_their_seed_with_classes_in_turn() -> None:
    scenes = EmojiScenes(seed=sources.SCENES_SEED, size=64)
    source = source_of("scenes", 70, classes=["fox", "rocket"])
    pictures, names = all_of(source)
    assert names == ["fox", "rocket"] * 35
    rocket = scenes.class_names.index("rocket")
    assert np.array_equal(pictures[69], scenes.scene(69, label=rocket).image)
    assert source_of("scenes").count == 10 * scenes.num_classes


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        ("scenes", {"steps": 3}, "steps: the pictures are drawn already"),
        ("nowhere", {}, "'nowhere' is no model, run or folder of pictures"),
    ],
)
def test_what_is_no_source(samples, settings, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message):
        source_of(samples, settings=settings)


def test_bad_choices_of_a_model(pipeline: Path) -> None:
    with pytest.raises(BadRequest, match="found 0; expected 1 or more"):
        source_of(pipeline, 0)
    with pytest.raises(BadRequest, match="no class 'fish'"):
        source_of(pipeline, classes=["fish"])
    with pytest.raises(BadRequest, match="there is no setting 'stepz'"):
        source_of(pipeline, settings={"stepz": 3})
