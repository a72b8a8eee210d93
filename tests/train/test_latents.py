"""Trainings on latents: the shapes are the data's, resuming is exact, what is exported draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ditscope.cli.main import main
from ditscope.errors import BadConfig, BadDataset
from ditscope.pipeline import load
from ditscope.train.config import TrainConfig
from ditscope.train.loop import Training
from ditscope.train.request import Request, resolve
from tests.data.test_pictures import photos
from tests.data.tiny_autoencoder import save_autoencoder
from tests.train.tiny import run, same

NETWORK = "hidden_size = 32\ndepth = 1\nnum_heads = 2\npatch_size = 2\n"
SHORT = ("save_every=2", "batch_size=4", "schedule=constant", "learning_rate=0.01")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of twelve pictures of 8 by 16 pixels: latents of 4 by 8."""
    folder = tmp_path_factory.mktemp("latents")
    save_autoencoder(folder / "vae")
    photos(folder / "photos")
    (folder / "net.toml").write_text(NETWORK)
    command = ["extract", "--data", str(folder / "photos"), "--autoencoder", str(folder / "vae")]
    assert main([*command, "--image-size", "8x16", "--out", str(folder / "latents"), "--json"]) == 0
    return folder


def settings(base: Path, *more: str) -> TrainConfig:
    asked = Request(
        data=str(base / "latents"),
        model=str(base / "net.toml"),
        objective="flow",
        settings=(*SHORT, *more),
    )
    return resolve(asked)[0]


def test_the_data_decides_shape_and_codec(base: Path) -> None:
    found = settings(base)
    assert (found.model.in_channels, found.model.input_size) == (4, (4, 8))
    assert found.codec.kind == "latent" and found.codec.scale == 0.18215
    assert found.labels == ("class 0", "class 1", "class 2") and found.data_digest
    with pytest.raises(BadConfig, match=r"input_size: found 4 channels of 4 x 4; expected 4 chann"):
        Training(settings(base, "model.input_size=4"), base / "never")
    with pytest.raises(BadConfig, match=r"in_channels: found 3 channels"):
        Training(settings(base, "model.in_channels=3"), base / "never")


def test_resuming_is_exact_and_the_export_draws_pictures(base: Path, tmp_path: Path) -> None:
    asked = settings(base, "steps=6", "preview_every=6")
    whole, _ = run(asked, tmp_path / "whole")
    run(asked.model_copy(update={"steps": 2}), tmp_path / "parts")
    parts, _ = run(asked, tmp_path / "parts")
    assert same(whole.model.state_dict(), parts.model.state_dict())
    assert same(whole.ema.state_dict(), parts.ema.state_dict())
    assert (tmp_path / "whole" / "previews" / "0000006.png").is_file()

    from ditscope.train.export import export

    export(tmp_path / "whole", tmp_path / "pipeline")
    pipe = load(tmp_path / "pipeline")
    assert pipe.codec.notes == ()
    assert pipe.codec.decode(torch.zeros(1, 4, 4, 8)).shape == (1, 8, 16, 3)
    assert load(tmp_path / "pipeline").labels == ("class 0", "class 1", "class 2")


def test_latents_that_changed_are_refused(base: Path, tmp_path: Path) -> None:
    asked = settings(base, "steps=2")
    run(asked, tmp_path / "t")
    with pytest.raises(BadDataset, match="came, went or changed"):
        run(asked.model_copy(update={"data_digest": "0" * 64}), tmp_path / "t")


def test_the_command_says_what_is_wrong(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", "--data", str(base / "photos"), "--out", str(tmp_path / "l"), "--json"]
    assert main([*command, "--autoencoder", str(base / "photos")]) == 3
    assert json.loads(capsys.readouterr().err)["error"] == "BadCheckpoint"
    good = [*command, "--autoencoder", str(base / "vae")]
    assert main([*good, "--image-size", "big"]) == 2
    assert main([*good, "--device", "abacus"]) == 2
    assert not (tmp_path / "l").exists()
