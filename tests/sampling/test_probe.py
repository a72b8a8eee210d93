"""Real pictures, noised and looked at: what the network saw, and what is read of it later."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditscope.analysis.diagnose.engine import diagnose
from ditscope.analysis.diagnose.finding import sample_again
from ditscope.data.codecs import LatentCodec, autoencoder_codec
from ditscope.data.scenes import EmojiScenes
from ditscope.diffusion.noise import SampleNoise
from ditscope.errors import BadDataset, BadRequest, ResourceError
from ditscope.pipeline import Pipeline, load
from ditscope.runs.reader import open_run
from ditscope.sampling.probe import probe
from tests.data.tiny_autoencoder import save_autoencoder
from tests.sampling.conftest import write_pipeline

LEVELS = [0.8, 0.4, 0.15]


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 12, 3), np.uint8)


def states_by_hand(pipe: Pipeline, pixels: np.ndarray, seeds: tuple[int, ...]) -> np.ndarray:
    """(step, sample, channel, y, x) float64, from the definitions of the two processes."""
    clean = pixels.transpose(0, 3, 1, 2) / 127.5 - 1
    noise = SampleNoise(seeds)(clean.shape).double().numpy()
    if pipe.process.kind == "flow":
        return np.stack([(1 - s) * clean + s * noise for s in LEVELS])
    betas = np.linspace(1e-4, 2e-2, 1000)
    abar = np.cumprod(1 - betas)
    nearest = [abar[np.abs(np.sqrt(1 - abar) - s).argmin()] for s in LEVELS]
    return np.stack([np.sqrt(a) * clean + np.sqrt(1 - a) * noise for a in nearest])


def entropy_by_hand(pipe: Pipeline, x: torch.Tensor, timestep: float, y: list[int]) -> np.ndarray:
    """(sample, layer, head) float64, from the projections of every block."""
    seen = []
    hooks = [
        block.attn.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
        for block in pipe.model.blocks
    ]
    with torch.inference_mode():
        pipe.network(x, timestep, torch.tensor(y))
    for hook in hooks:
        hook.remove()
    found = []
    for qkv in seen:
        rows, tokens, width = qkv.shape
        q, k, _ = qkv.double().view(rows, tokens, 3, 2, width // 6).permute(2, 0, 3, 1, 4)
        p = (q @ k.mT * (width // 6) ** -0.5).softmax(-1)
        found.append(-(p * p.log()).sum(-1).mean(-1).numpy())
    return np.stack(found, axis=1)


def test_what_is_recorded_is_what_the_network_sees(folder: Path, tmp_path: Path) -> None:
    pipe, pixels = load(folder, dtype="float32"), pictures()
    run = probe(
        pipe, pixels, ["ant", 2, None], noise_levels=LEVELS, record=tmp_path / "run", batch_size=2
    )
    manifest = run.manifest
    expected = states_by_hand(pipe, pixels, manifest.sample_seeds)
    np.testing.assert_allclose(run.latents.values, expected, atol=2e-6)
    assert np.array_equal(run.images.values, pixels)
    assert [label.name for label in manifest.labels] == ["ant", "cat", "no class"]
    y = [0, 2, pipe.model.config.null_label]
    for step, record in enumerate(manifest.steps):
        assert record.branches == ("cond",)
        assert record.noise_level == pytest.approx(LEVELS[step], abs=2e-3)
        x = torch.from_numpy(run.latents[step].values)
        by_hand = entropy_by_hand(pipe, x, record.timestep, y)
        found = run.stats["entropy"].sel(branch="cond")[step]
        np.testing.assert_allclose(found, by_hand, atol=2e-5)
    assert run.verify().ok and open_run(tmp_path / "run").complete


def test_it_is_read_as_any_run_stored_and_replayed(flow_folder: Path, tmp_path: Path) -> None:
    pipe = load(flow_folder, dtype="float32")
    settings = {"noise_levels": LEVELS, "branches": ("cond", "uncond"), "batch_size": 2}
    labels = ["ant", "bee", "cat"]
    kept = probe(pipe, pictures(), labels, record=tmp_path / "kept", qk_steps=(0, 1, 2), **settings)
    bare = probe(pipe, pictures(), labels, record=tmp_path / "bare", **settings)
    for name in kept.stats:
        assert np.array_equal(kept.stats[name], bare.stats[name])
    asked = {"layer": 1, "head": "all", "step": 1, "query": (1, 2), "sample": 2, "branch": "uncond"}
    stored, replayed = kept.attention(**asked), bare.attention(**asked)
    assert (stored.attrs["source"], replayed.attrs["source"]) == ("stored", "replayed")
    np.testing.assert_allclose(stored, replayed, atol=1e-6)
    np.testing.assert_allclose(stored.sum(["y", "x"]), 1, atol=1e-5)
    code = (
        "import sys, ditscope as ds; run = ds.open_run(sys.argv[1]); run.stats; run.images;"
        "run.attention(layer=1, head=0, step=1, query=(1, 2)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "kept")], check=True)


def test_noise_belongs_to_the_picture_and_one_noise_serves_all_levels(
    flow_folder: Path, tmp_path: Path
) -> None:
    pipe, pixels = load(flow_folder, dtype="float32"), pictures()
    three = probe(pipe, pixels, noise_levels=LEVELS, record=tmp_path / "three", batch_size=3)
    two = probe(pipe, pixels[:2], noise_levels=LEVELS[1:], record=tmp_path / "two", batch_size=1)
    assert np.array_equal(three.latents[1:, :2], two.latents)


def test_levels_come_noisiest_first(flow_folder: Path, tmp_path: Path) -> None:
    run = probe(
        load(flow_folder, dtype="float32"),
        pictures(1)[0],  # one array is one picture
        ["ant"],
        noise_levels=[0.1, 0.9, 0.5],
        record=tmp_path / "run",
    )
    assert [step.noise_level for step in run.manifest.steps] == [0.9, 0.5, 0.1]


def test_a_probe_is_judged_as_one(flow_folder: Path, tmp_path: Path) -> None:
    """A picture of no class has one branch twice: no fault. Advice is a command that works."""
    pipe = load(flow_folder, dtype="float32")
    levels = [1 - index / 10 for index in range(10)]
    settings = {"noise_levels": levels, "branches": ("cond", "uncond")}
    run = probe(pipe, pictures(2), ["ant", None], record=tmp_path / "run", **settings)
    assert not [each for each in diagnose(run).findings if each.rule == "branches"]
    command = sample_again(run, "--metrics", "output_norm")
    words = shlex.split(command)
    assert words[:2] == ["ditscope", "probe"] and "no class" not in words
    assert set(words[2:4]) == {str(tmp_path / "run" / name) for name in run.layout.image_files}


def test_scenes_bring_their_masks_and_classes(tmp_path: Path) -> None:
    world = EmojiScenes(seed=5, size=64, num_classes=40)
    scenes = [world.scene(index) for index in range(2)]
    pipe = load("emoji", dtype="float32")
    run = probe(pipe, scenes, noise_levels=[0.3], record=tmp_path / "run", metrics=("entropy",))
    assert np.array_equal(run.masks, np.stack([scene.mask for scene in scenes]))
    assert run.masks.dims == ("sample", "y", "x") and run.verify().ok
    names = [world.class_names[scene.label] for scene in scenes]
    assert [label.name for label in run.manifest.labels] == names
    assert np.array_equal(run.images, np.stack([scene.image for scene in scenes]))


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    pipe = load("emoji", dtype="float32")
    scenes = [EmojiScenes(seed=5).scene(0, label=0)]
    run = probe(pipe, scenes, noise_levels=[0.3], record=tmp_path / "run", metrics=())
    assert run.layout.masks is not None
    (name,) = run.layout.masks.chunk_files()
    file = tmp_path / "run" / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    problems = open_run(tmp_path / "run").verify().problems
    assert problems and all("masks" in problem for problem in problems)


def test_files_pictures_of_pillow_and_arrays(flow_folder: Path, tmp_path: Path) -> None:
    pipe, pixels = load(flow_folder, dtype="float32"), pictures()
    image = Image.fromarray(pixels[0])
    image.save(tmp_path / "one.png")
    given = [tmp_path / "one.png", image, pixels[0]]
    run = probe(pipe, given, noise_levels=[0.5], record=tmp_path / "run", seed=3)
    assert np.array_equal(run.images, np.stack([pixels[0]] * 3))
    with pytest.raises(BadRequest, match="objects are not known"):
        run.masks  # noqa: B018


def test_latents_come_from_the_autoencoder(tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "vae")
    codec = autoencoder_codec(tmp_path / "vae")
    assert isinstance(codec, LatentCodec)
    side = 16
    pixels = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), np.uint8)
    mean, _ = codec.posterior(pixels)
    assert side == mean.shape[-1] * codec.pixels_per_latent
    torch.testing.assert_close(codec.encode(pixels), mean * codec.config.scale)


NOTHING_LEFT = [
    ({"images": []}, BadRequest, "images: found none"),
    ({"images": pictures()[:, :4]}, BadRequest, r"picture 0 is uint8 of shape \(4, 12, 3\)"),
    ({"images": pictures().astype(np.float32)}, BadRequest, "picture 0 is float32"),
    ({"images": ["missing.png"]}, BadDataset, "missing.png: is no file"),
    ({"images": [7]}, BadRequest, "picture 0 is int"),
    ({"noise_levels": []}, BadRequest, "noise_levels: found none"),
    ({"noise_levels": [0.5, 0.0]}, BadRequest, "noise_levels: found 0.0"),
    ({"noise_levels": [1.1]}, BadRequest, "noise_levels: found 1.1"),
    ({"noise_levels": [float("nan")]}, BadRequest, "noise_levels: found nan"),
    ({"noise_levels": [0.5, 0.5]}, BadRequest, "noise_levels: names one twice"),
    ({"noise_levels": 0.5}, BadRequest, "noise_levels: found 0.5; expected a list"),
    ({"noise_levels": ["half"]}, BadRequest, "noise_levels: found .*half"),
    ({"branches": ("cond", "uncond")}, BadRequest, "without a class both branches are one"),
    ({"images": ["."]}, BadDataset, "is no file"),
    ({"labels": ["ant"]}, BadRequest, "labels: .*a list of 3 classes"),
    ({"labels": "ant"}, BadRequest, "labels: .*a list of 3 classes"),
    ({"labels": ["ant", "ant", "wasp"]}, BadRequest, "there is no class 'wasp'"),
    ({"branches": ("uncond",)}, BadRequest, "branches: found"),
    ({"qk_steps": (3,)}, BadRequest, "qk_steps: found 3"),
    ({"steps": 4}, BadRequest, "steps is of samplings"),
    ({"metrics": ("nonsense",)}, BadRequest, "nonsense"),
    ({"metrics": ("branch_kl",)}, BadRequest, "branch_kl compares two branches"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), NOTHING_LEFT)
def test_refuses_and_leaves_nothing(
    flow_folder: Path, tmp_path: Path, wrong: dict[str, object], error: type, message: str
) -> None:
    pipe, place = load(flow_folder, dtype="float32"), tmp_path / "run"
    right: dict[str, object] = {"images": pictures(), "noise_levels": LEVELS, "record": place}
    with pytest.raises(error, match=message):
        probe(pipe, **{**right, **wrong})
    assert not place.exists()


def test_networks_that_know_no_missing_class_and_runs_that_are_there(
    flow_folder: Path, tmp_path: Path
) -> None:
    pipe = load(flow_folder, dtype="float32")
    probe(pipe, pictures(1), ["ant"], noise_levels=[0.5], record=tmp_path / "run")
    with pytest.raises(ResourceError, match="run"):
        probe(pipe, pictures(1), ["ant"], noise_levels=[0.5], record=tmp_path / "run")
    told = write_pipeline(tmp_path / "told", "flow", class_dropout_prob=0.0)
    always = load(told, dtype="float32")
    probe(always, pictures(1), ["ant"], noise_levels=[0.5], record=tmp_path / "always")
    for wrong in ({"labels": None}, {"labels": ["ant"], "branches": ("cond", "uncond")}):
        with pytest.raises(BadRequest, match="knows no pictures without a class"):
            probe(always, pictures(1), noise_levels=[0.5], record=tmp_path / "none", **wrong)


def ditscope(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ditscope", "probe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(flow_folder: Path, tmp_path: Path) -> None:
    Image.fromarray(pictures()[0]).save(tmp_path / "one.png")
    out = tmp_path / "run"
    common = ("--model", flow_folder, "--out", out)
    done = ditscope(tmp_path / "one.png", *common, "--class", "bee", "--noise-levels", "0.5,0.2")
    assert done.returncode == 0, done.stderr
    run = open_run(out)
    assert run.manifest.qk_steps == (0, 1) and run.manifest.labels[0].name == "bee"
    assert (out / "figures" / "patch.png").is_file()
    for wrong, code, words in (
        ((), 2, "found no picture"),
        (("--scenes", 2), 2, "does not draw emoji scenes"),
        ((tmp_path / "one.png", "--noise-levels", "half"), 2, "noise-levels: found 'half'"),
        ((tmp_path / "two.png",), 3, "two.png: is no file"),
    ):
        refused = ditscope(*wrong, "--model", flow_folder, "--out", tmp_path / "no", "--json")
        assert refused.returncode == code and "Traceback" not in refused.stderr
        told = json.loads(refused.stderr)
        where = told["field"] or Path(told["file"] or "").name
        assert words in f"{where}: {told['problem']}"
    assert not (tmp_path / "no").exists()
