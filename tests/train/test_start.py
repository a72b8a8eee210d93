"""Trainings that begin with given weights: classes keep their rows, the null class is last."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ditscope.data.scenes import EmojiScenes
from ditscope.errors import BadCheckpoint, BadConfig
from ditscope.model.sources import read_source
from ditscope.model.weights import load_weights
from ditscope.pipeline import bundled_folder
from ditscope.train.coarse import refine
from ditscope.train.config import TrainConfig
from ditscope.train.export import export
from ditscope.train.loop import Training
from ditscope.train.request import Request, resolve
from ditscope.train.sources import data_source
from tests.data.test_pictures import photos
from tests.train.tiny import run, same

NETWORK = "hidden_size = 32\ndepth = 1\nnum_heads = 2\npatch_size = 4\n"
TABLE = "y_embedder.embedding_table.weight"
SHORT = ("steps=4", "save_every=4", "batch_size=6", "warmup_steps=0", "learning_rate=0.01")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training on three classes, `t`, and what was exported of it, `p`."""
    base = tmp_path_factory.mktemp("first")
    (base / "net.toml").write_text(NETWORK)
    asked = Request(
        data=str(photos(base / "photos")),
        model=str(base / "net.toml"),
        image_size="8",
        objective="flow-x",
        settings=SHORT,
    )
    run(resolve(asked)[0], base / "t")
    export(base / "t", base / "p")
    return base


def follow_up(base: Path, init: Path, *settings: str, **more: str) -> TrainConfig:
    """The configuration of a training on classes "class 0", "apple" and "class 2"."""
    data = base / "more"
    if not data.exists():
        photos(data)
        (data / "class 1").rename(data / "apple")
    asked = Request(data=str(data), init=str(init), settings=(*SHORT, *settings), **more)
    return resolve(asked)[0]


@pytest.mark.parametrize("place", ["t", "t/ckpt-0000004", "p"])
def test_classes_keep_their_rows_and_new_ones_follow(
    first: Path, tmp_path: Path, place: str
) -> None:
    settings = follow_up(tmp_path, first / place)
    assert settings.labels == ("class 0", "class 1", "class 2", "apple")
    assert settings.process.kind == "flow" and settings.process.prediction == "x"
    assert settings.model.input_size == 8 and settings.model.num_classes == 4
    old = load_weights(first / "t" / "ckpt-0000004" / "ema.safetensors")
    if place == "p":
        old = {name: tensor.bfloat16().float() for name, tensor in old.items()}
    with Training(settings, tmp_path / "u") as training:
        new = training.model.state_dict()
        assert same(new, training.ema.state_dict())
        assert torch.equal(new[TABLE][[0, 1, 2, 4]], old[TABLE])
        assert 0 < new[TABLE][3].std() < 0.04
        for name in old.keys() - {TABLE}:
            assert torch.equal(new[name], old[name]) or name == "pos_embed"
        batch = training.source.batch(range(12))[1]
        assert sorted(batch.tolist()) == [0, 0, 0, 0, 2, 2, 2, 2, 3, 3, 3, 3]
        training.run(lambda line: None)
    export(tmp_path / "u", tmp_path / "pipeline")


def test_resuming_is_exact_and_reads_the_weights_no_more(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first / "p", tmp_path / "p")
    settings = follow_up(tmp_path, tmp_path / "p", "save_every=2", "schedule=constant")
    whole, _ = run(settings, tmp_path / "whole")
    run(settings.model_copy(update={"steps": 2}), tmp_path / "parts")
    shutil.rmtree(tmp_path / "p")
    parts, _ = run(settings, tmp_path / "parts")
    assert same(whole.model.state_dict(), parts.model.state_dict())
    assert same(whole.ema.state_dict(), parts.ema.state_dict())
    other = settings.model_copy(update={"init": str(first / "p")})
    with pytest.raises(BadConfig, match="init: this training has"):
        Training(other, tmp_path / "parts")


def test_another_size_of_picture(first: Path, tmp_path: Path) -> None:
    settings = follow_up(tmp_path, first / "p", image_size="16x8")
    with Training(settings, tmp_path / "u") as training:
        assert training.model.pos_embed.shape[1] == 8
        training.run(lambda line: None)


def test_a_coarse_stage_first(first: Path, tmp_path: Path) -> None:
    """Made coarse and fine again the weights are what they were; the training ends fine."""
    settings = follow_up(tmp_path, first / "p", "coarse_steps=1")
    with Training(settings, tmp_path / "u") as training:
        assert training.learner.coarse
        fine = refine(training.model.state_dict(), settings.model)
        with Training(follow_up(tmp_path, first / "p"), tmp_path / "v") as expected:
            wanted = expected.model.state_dict()
        assert fine.pop(TABLE).shape == wanted.pop(TABLE).shape  # new classes: other random rows
        assert same(fine, wanted)
        training.run(lambda line: None)
        assert not training.learner.coarse


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model.num_heads=4",), r"model.num_heads: found 4; expected 2, as in"),
        (("model.depth=2",), r"model.depth: found 2; expected 1"),
        (("process.kind=ddpm",), "learn_sigma|prediction"),
    ],
)
def test_another_network_is_refused(
    first: Path, tmp_path: Path, settings: tuple[str, ...], words: str
) -> None:
    with pytest.raises(BadConfig, match=words):
        Training(follow_up(tmp_path, first / "p", *settings), tmp_path / "u")


def test_weights_that_are_not_there_or_not_those(first: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="no such file or folder"):
        follow_up(tmp_path, tmp_path / "nothing")
    with pytest.raises(BadCheckpoint, match="holds no whole checkpoint"):
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / "log.jsonl").write_text("")
        (tmp_path / "t" / "config.json").write_bytes((first / "t" / "config.json").read_bytes())
        follow_up(tmp_path, tmp_path / "t")
    other = follow_up(tmp_path, first / "p").model_copy(update={"init_digest": "0" * 64})
    with pytest.raises(BadCheckpoint, match="not the weights the training began with"):
        Training(other, tmp_path / "u")


def test_the_bundled_model_keeps_its_classes_and_new_ones_follow(tmp_path: Path) -> None:
    settings, _ = resolve(Request(init="emoji", settings=SHORT))
    assert settings.init == "emoji" and settings.process.kind == "flow"
    assert settings.labels == EmojiScenes.class_names
    assert settings.model.num_classes == len(settings.labels)
    with Training(settings, tmp_path / "t") as training:
        new = training.model.state_dict()[TABLE]
    old = read_source(bundled_folder("emoji"))
    assert old.config.labels == EmojiScenes.class_names[: len(old.config.labels)]
    assert torch.equal(new[: len(old.config.labels)], old.weights.state[TABLE][:-1])
    assert torch.equal(new[-1], old.weights.state[TABLE][-1])


def test_fewer_classes_are_the_first_ones(tmp_path: Path) -> None:
    chosen, _ = resolve(Request(init="emoji", settings=(*SHORT, "model.num_classes=3")))
    assert chosen.labels == EmojiScenes.class_names[:3]
    fresh, _ = resolve(Request(model="DiT-S/4", settings=("model.num_classes=3",)))
    for settings in (chosen, fresh):
        source = data_source(settings)
        assert source.class_names == EmojiScenes.class_names[:3]
        images, labels = source.batch(range(18))
        shown, theirs, _ = EmojiScenes(num_classes=3).batch(range(18))
        assert (images == shown).all() and (labels == theirs).all()


def test_more_classes_than_there_are() -> None:
    settings, _ = resolve(Request(model="DiT-S/4", settings=("model.num_classes=73",)))
    with pytest.raises(BadConfig, match=r"model.num_classes: found 73; expected 1 to 72"):
        data_source(settings)
    gap = settings.model_copy(update={"labels": (*EmojiScenes.class_names[1:], "yeti", "imp")})
    with pytest.raises(BadConfig, match="classes without a label: dog face"):
        data_source(gap)
