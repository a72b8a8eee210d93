"""Loading a pipeline from every kind of place, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ditscope.data.codecs import Latent, LatentCodec, RGBCodec
from ditscope.errors import BadCheckpoint, BadRequest, ResourceError
from ditscope.pipeline import checked_dtype, load
from ditscope.sampling.draw import sample
from tests.sampling.conftest import LABELS, write_pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pipeline(tmp_path / "pipeline", "flow")


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_folder(folder: Path) -> None:
    pipe = load(folder, dtype="float32")
    assert pipe.labels == LABELS
    assert (pipe.defaults.steps, pipe.defaults.cfg_scale) == (4, 2.0)
    assert pipe.latent_shape == (3, 8, 12)
    assert pipe.source == str(folder)
    assert not pipe.model.training
    assert load(folder, dtype="float32").weights_sha256 == pipe.weights_sha256
    assert load(folder, dtype="bfloat16").weights_sha256 != pipe.weights_sha256


def test_weights_from_a_training_checkpoint(folder: Path, tmp_path: Path) -> None:
    """A published-style `.pt` under the same configuration; its EMA half is taken."""
    other = load(write_pipeline(tmp_path / "other", "flow", seed=1), dtype="float32")
    state = other.model.state_dict()
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"model": zeros, "ema": state, "opt": {}}, tmp_path / "0000100.pt")
    square = {**json.loads((folder / "config.json").read_text())["model"]}
    assert square["input_size"] == [8, 12]
    pipe = load(folder, weights=tmp_path / "0000100.pt", dtype="float32")
    for name, value in pipe.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    run = sample(pipe, ["ant"], record=tmp_path / "run")
    assert run.attention(1, 0, 2, (1, 1)).attrs["source"] == "replayed"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["ant"]}, "labels"),
        ({"process": {"kind": "ddpm"}}, "learn_sigma"),
        ({"process": {"kind": "flow", "prediction": "noise"}}, "prediction"),
        ({"codec": {"kind": "jpeg"}}, "codec"),
        ({"codec": {"kind": "latent", "autoencoder": "../elsewhere"}}, "autoencoder"),
        ({"defaults": {"stepz": 3}}, "stepz"),
        ({"auto_map": {"AutoModel": "evil.py"}}, "auto_map"),
    ],
)
def test_contradictions_are_refused(folder: Path, changes: dict[str, object], words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(BadCheckpoint, match=words):
        load(folder)


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="did you mean 'emoji'"):
        load("emojy")
    with pytest.raises(BadRequest, match="published size"):
        load("DiT-XL/2")
    with pytest.raises(BadRequest, match="float8"):
        checked_dtype("float8")
    with pytest.raises(BadCheckpoint, match="no such file"):
        load(write_pipeline(tmp_path / "p", "flow"), weights=tmp_path / "none.pt")


def test_a_device_that_is_not_there(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ResourceError, match="cpu"):
        load(folder, device="cuda")


def test_rgb_rounds_half_up_and_clamps() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1 / 255, 1.0, 2.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    expected = np.clip(np.floor((values.numpy() + 1) * 127.5 + 0.5), 0, 255)
    assert np.array_equal(RGBCodec().decode(values), expected.transpose(0, 2, 3, 1))


def test_an_autoencoder_decodes_what_it_encoded(tmp_path: Path) -> None:
    """Against diffusers called directly, on an autoencoder with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    ).eval()
    autoencoder.save_pretrained(tmp_path / "vae")
    latents = torch.randn(5, 4, 4, 6)
    codec = LatentCodec(Latent(scale=0.5, autoencoder="vae"), tmp_path / "vae")
    with torch.inference_mode():
        pictures = autoencoder.decode(latents / 0.5).sample
    expected = np.clip(np.floor((pictures.numpy() + 1) * 127.5 + 0.5), 0, 255)
    found = codec.decode(latents)
    assert found.shape == (5, 8, 12, 3)
    assert np.abs(found.astype(int) - expected.transpose(0, 2, 3, 1)).max() <= 1


def test_latents_without_an_autoencoder_are_previewed() -> None:
    codec = LatentCodec(Latent(), None)
    assert "no autoencoder" in codec.notes[0]
    preview = codec.decode(torch.randn(2, 4, 8, 6))
    assert preview.shape == (2, 8, 6, 3)
    assert preview.std() > 1
    assert codec.decode(torch.randn(1, 16, 4, 4)).shape == (1, 4, 4, 3)
