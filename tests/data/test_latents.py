"""Latents on disk: what diffusers computes, whole after a kill, drawn anew for every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ditscope.core.atomic import file_sha256
from ditscope.data import extract as extraction
from ditscope.data.codecs import LatentCodec, autoencoder_codec
from ditscope.data.latents import Extraction, LatentFolder, LatentManifest
from ditscope.data.listing import listing
from ditscope.data.order import mirrored
from ditscope.data.pictures import read_picture
from ditscope.errors import BadCheckpoint, BadDataset, BadRequest, NumericalError
from tests.data.test_pictures import photos
from tests.data.tiny_autoencoder import save_autoencoder

SIZE = (8, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of three classes, one of them broken, and their latents, in three shards."""
    folder = tmp_path_factory.mktemp("base")
    save_autoencoder(folder / "vae", scaling_factor=0.5)
    (photos(folder / "photos") / "class 1" / "2.png").write_bytes(b"no picture")
    extracted(folder, folder / "latents")
    return folder


def asked(base: Path, **changes: object) -> Extraction:
    found = listing(str(base / "photos"), SIZE)
    settings: dict[str, object] = {
        "data": found.data,
        "data_digest": found.digest,
        "class_names": found.class_names,
        "image_size": SIZE,
        "views": 2,
        "dtype": "float32",
        "codec": autoencoder_codec(base / "vae").config,
        "autoencoder_sha256": "0" * 64,
        "shard_pictures": 5,
    }
    return Extraction.model_validate(settings | changes)


def extracted(base: Path, out: Path, max_bad: int = 1, **changes: object) -> LatentManifest:
    return extraction.extract(
        asked(base, **changes),
        listing(str(base / "photos"), SIZE).pictures,
        autoencoder_codec(base / "vae"),
        out,
        max_bad=max_bad,
    )


def copied(base: Path, to: Path) -> Path:
    to.mkdir()
    for file in (base / "latents").iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_mean_and_deviation_are_those_of_diffusers(base: Path) -> None:
    autoencoder = save_autoencoder(base / "again")
    shards = [
        load_file(base / "latents" / f"latents-{number:05d}.safetensors") for number in range(3)
    ]
    mean, std, label = (
        np.concatenate([shard[name] for shard in shards]) for name in ("mean", "std", "label")
    )
    files = sorted((base / "photos").rglob("*.png"))
    files.remove(base / "photos" / "class 1" / "2.png")
    assert mean.shape == std.shape == (11, 2, 4, 4, 6)
    assert label.tolist() == [int(file.parent.name[-1]) for file in files]
    for row, file in enumerate(files):
        picture = read_picture(file, SIZE).astype(np.float32) / 127.5 - 1
        for view, shown in enumerate((picture, picture[:, ::-1])):
            pixels = torch.from_numpy(shown.transpose(2, 0, 1).copy())[None]
            with torch.inference_mode():
                expected = autoencoder.encode(pixels).latent_dist
            assert np.allclose(mean[row, view], expected.mean[0], atol=1e-5)
            assert np.allclose(std[row, view], expected.std[0], rtol=1e-4)
    assert LatentFolder(base / "latents").manifest.left_out == (
        ("class 1/2.png", "is none of JPEG, PNG, WEBP, BMP"),
    )


def test_what_was_killed_goes_on_and_ends_with_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    posterior = LatentCodec.posterior

    def counted(codec: LatentCodec, pictures: np.ndarray, device: str = "cpu"):
        encoded.append(len(pictures))
        if len(encoded) == stop:
            raise KeyboardInterrupt
        return posterior(codec, pictures, device)

    monkeypatch.setattr(LatentCodec, "posterior", counted)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        extracted(base, tmp_path / "latents")
    names = [path.name for path in (tmp_path / "latents").iterdir()]
    assert names == ["latents-00000.safetensors"]
    encoded.clear()
    stop = 0
    extracted(base, tmp_path / "latents")
    assert sum(encoded) == 2 * 6  # both views of what the first shard does not hold
    whole, resumed = (
        {path.name: path.read_bytes() for path in place.iterdir()}
        for place in (base / "latents", tmp_path / "latents")
    )
    assert resumed == whole
    encoded.clear()
    extracted(base, tmp_path / "latents")
    assert sum(encoded) == 2 * 2  # the last shard: pictures may have come


def test_every_epoch_draws_every_latent_anew(base: Path) -> None:
    data = LatentFolder(base / "latents", seed=3)
    assert len(data) == 11 and data.class_names == ("class 0", "class 1", "class 2")
    forward, labels = data.batch(range(44))
    assert forward.shape == (44, 4, 4, 6) and forward.dtype == np.float32
    for epoch in range(4):
        assert sorted(labels[11 * epoch :][:11].tolist()) == [0] * 4 + [1] * 3 + [2] * 4
    again = LatentFolder(base / "latents", seed=3)
    for index in reversed(range(44)):
        latent, label = again.batch([index])
        assert np.array_equal(latent[0], forward[index]) and label[0] == labels[index]
    assert len({latent.tobytes() for latent in forward}) == 44
    other, _ = LatentFolder(base / "latents", seed=4).batch(range(44))
    assert not np.array_equal(other, forward)


def test_latents_have_the_posterior_distribution(base: Path, tmp_path: Path) -> None:
    shard = load_file(base / "latents" / "latents-00000.safetensors")
    one = {name: values[:1] for name, values in shard.items()}
    data = LatentFolder(rewritten(copied(base, tmp_path / "one"), one), seed=0)
    drawn, _ = data.batch(range(2000))
    mean, std = 0.5 * one["mean"][0, 0], 0.5 * one["std"][0, 0]
    assert np.abs((drawn.mean(0) - mean) / std).max() < 5 / np.sqrt(2000)
    assert np.abs(drawn.std(0) / std - 1).max() < 5 / np.sqrt(2 * 2000)


def test_mirrored_pictures_have_latents_of_their_own(base: Path, tmp_path: Path) -> None:
    shard = load_file(base / "latents" / "latents-00000.safetensors")
    marked = {**shard, "mean": shard["mean"] * 0, "std": shard["std"] * 0}
    marked["mean"][:, 1] = 2
    folder = rewritten(copied(base, tmp_path / "marked"), marked)
    flipped, _ = LatentFolder(folder, seed=5, flip=True).batch(range(40))
    assert (flipped[:, 0, 0, 0] == 1).tolist() == [mirrored(5, index) for index in range(40)]
    plain, _ = LatentFolder(folder, seed=5).batch(range(40))
    assert (plain == 0).all()


def rewritten(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """The latents with one shard, of these tensors, and a manifest that fits."""
    for path in folder.glob("latents-*"):
        path.unlink()
    path = folder / "latents-00000.safetensors"
    save_file(tensors, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = [
        {
            "file": path.name,
            "size": path.stat().st_size,
            "sha256": file_sha256(path),
            "count": len(tensors["label"]),
        }
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def flip_a_byte(folder: Path) -> None:
    path = folder / "latents-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def in_manifest(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

    return change


def with_label(label: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shard = load_file(folder / "latents-00000.safetensors")
        rewritten(folder, {**shard, "label": shard["label"] * 0 + label})

    return change


def without_deviation(folder: Path) -> None:
    shard = load_file(folder / "latents-00000.safetensors")
    rewritten(folder, {**shard, "std": shard["std"][:, :1]})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "latents-00001.safetensors").unlink(), "No such file"),
        (
            lambda folder: (folder / "latents-00001.safetensors").write_bytes(b"short"),
            "has 5 bytes",
        ),
        (flip_a_byte, r"latents-00001.*is damaged: sha256 .*expected sha256"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
        (in_manifest("version", 2), "version"),
        (in_manifest("more", 1), "more: unknown field"),
        (in_manifest("shards", []), "holds no latents"),
        (in_manifest("shards", [{"file": "../x", "size": 1, "sha256": "", "count": 1}]), "file"),
        (with_label(3), "labels of no class; expected labels from 0 to 2"),
        (
            without_deviation,
            r"holds .*'std': \[5, 1, 4, 4, 6\].*expected latents \[5, 2, 4, 4, 6\]",
        ),
    ],
)
def test_damaged_latents_are_named(
    base: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = copied(base, tmp_path / "latents")
    damage(folder)
    with pytest.raises(BadDataset, match=words):
        LatentFolder(folder).batch(range(11))


def test_a_folder_of_something_else_is_left_alone(base: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(BadRequest, match=r"holds other files: letter\.txt"):
        extracted(base, tmp_path)
    folder = copied(base, tmp_path / "latents")
    with pytest.raises(BadRequest, match="is of other pictures, another size"):
        extracted(base, folder, views=1)
    (folder / "latents-00000.safetensors").write_bytes(b"no")
    with pytest.raises(BadDataset, match="is no shard of latents"):
        extracted(base, folder)


def test_pictures_that_cannot_be_read_have_a_limit(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=r"cannot be read: 1, such as class 1/2.png .*at most 0"):
        extracted(base, tmp_path / "latents", max_bad=0)


def test_an_autoencoder_that_puts_out_nan(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = torch.full((10, 4, 4, 6), float("nan"))
    monkeypatch.setattr(LatentCodec, "posterior", lambda codec, pictures, device: (nan, nan))
    with pytest.raises(NumericalError, match="puts out NaN"):
        extracted(base, tmp_path / "latents")
    assert [path for path in (tmp_path / "latents").iterdir() if path.name != "lock"] == []


def test_what_is_no_autoencoder(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"holds no config.json; expected an AutoencoderKL"):
        autoencoder_codec(tmp_path)
    save_autoencoder(tmp_path / "shifted", shift_factor=0.1)
    with pytest.raises(BadCheckpoint, match=r"shift_factor: found 0\.1; expected none"):
        autoencoder_codec(tmp_path / "shifted")


def test_scenes_are_listed_by_number(tmp_path: Path) -> None:
    found = listing("emoji", (16, 16), num_pictures=3, seed=2)
    assert [name for name, _ in found.pictures(1)] == ["scene 1", "scene 2"]
    with pytest.raises(BadRequest, match="num_pictures: found None; expected how many"):
        listing("emoji", (16, 16))
    with pytest.raises(BadRequest, match="emoji scenes are square"):
        listing("emoji", (16, 32), num_pictures=3)
    with pytest.raises(BadRequest, match="a folder is used whole"):
        listing(str(photos(tmp_path / "p")), (16, 16), num_pictures=3)
