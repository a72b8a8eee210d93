"""What a command says becomes a whole configuration, or an error that names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditscope.core.strict_json import read
from ditscope.errors import BadConfig, BadDataset, BadRequest
from ditscope.pipeline import bundled_folder
from ditscope.train.heads import choose_heads
from ditscope.train.request import Request, resolve
from ditscope.train.sources import label_names
from tests.data.test_pictures import photos

ROOT = Path(__file__).parents[2]
LOOKS = {"log_every", "save_every", "preview_every", "health_every", "max_skipped"}
"""Settings that change no weight."""


def test_the_recipe_of_the_bundled_model_means_what_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ditscope.train.request.default_dtype", lambda device: "bfloat16")
    found, notes = resolve(Request(recipe=ROOT / "recipes" / "emoji.toml"))
    assert notes == [] and label_names(found)[0] == "dog face"
    assert found.model_dump(exclude={"model", "process"}) == {
        "data": "emoji",
        "data_digest": None,
        "labels": (),
        "flip": True,
        "max_bad_pictures": 100,
        "codec": {"kind": "rgb"},
        "records": {"split": "train", "subset": None, "image": None, "label": None, "block": 1024},
        "init": None,
        "init_digest": None,
        "seed": 0,
        "batch_size": 48,
        "steps": 4700,
        "coarse_steps": 3800,
        "precision": "bf16",
        "accumulate": 1,
        "grad_checkpoint": False,
        "compile": False,
        "optimizer": "muon",
        "learning_rate": 1.5e-3,
        "matrix_learning_rate": 2.5e-3,
        "weight_decay": 0.0,
        "schedule": "linear",
        "warmup_steps": 100,
        "decay_steps": 400,
        "clip_norm": 1.0,
        "ema_decay": 0.996,
        "ema_ramp": True,
        "timestep_sampling": "auto",
        "level_mean": 0.8,
        "level_std": 1.0,
        "max_skipped": 0,
        "log_every": 20,
        "save_every": 100,
        "snapshot_every": 0,
        "preview_every": 0,
        "health_every": 0,
        "tensorboard": False,
    }
    assert found.sampling == "logit-normal"


def test_the_recipe_is_that_of_the_bundled_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides the weights is the same in the recipe and in what was exported."""
    monkeypatch.setattr("ditscope.train.request.default_dtype", lambda device: "bfloat16")
    found, _ = resolve(Request(recipe=ROOT / "recipes" / "emoji.toml"))
    told = read(bundled_folder("emoji") / "config.json")
    assert told["model"] == found.model.model_dump(mode="json")
    assert told["process"] == found.process.model_dump(mode="json")
    training = told["training"]
    assert isinstance(training, dict)
    mine = found.model_dump(mode="json")
    compared = training.keys() - {"step", "pictures"} - LOOKS
    assert {name: training[name] for name in compared} == {name: mine[name] for name in compared}
    assert training["step"] == found.steps
    assert training["pictures"] == found.steps * found.batch_size


def test_a_variant_on_emoji_scenes() -> None:
    found, _ = resolve(Request(model="DiT-S/4"))
    assert (found.model.hidden_size, found.model.depth, found.model.patch_size) == (384, 12, 4)
    assert (found.model.input_size, found.model.in_channels, found.model.num_classes) == (64, 3, 72)
    assert found.process.kind == "ddpm" and found.model.learn_sigma
    assert (found.schedule, found.learning_rate, found.weight_decay) == ("cosine", 1e-4, 0.03)
    flow, _ = resolve(Request(model="dit-s/4", objective="flow-x"))
    assert flow.process.kind == "flow" and flow.process.prediction == "x"
    assert not flow.model.learn_sigma


def test_the_paper() -> None:
    found, _ = resolve(Request(model="DiT-XL/2", preset="dit-paper"))
    assert (found.optimizer, found.learning_rate, found.weight_decay) == ("adamw", 1e-4, 0)
    assert (found.ema_decay, found.ema_ramp, found.clip_norm) == (0.9999, False, 0)
    assert (found.batch_size, found.precision) == (256, "fp32")
    assert {found.rate(step) for step in (0, 1, 5000, found.steps - 1)} == {1.0}


def test_a_folder_and_a_network_of_ones_own(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    (tmp_path / "net.toml").write_text("hidden_size = 96\ndepth = 2\nnum_heads = 3\npatch_size = 4")
    asked = Request(data=str(folder), model=str(tmp_path / "net.toml"), image_size="48x32")
    found, _ = resolve(asked)
    assert found.labels == label_names(found) == ("class 0", "class 1", "class 2")
    assert found.model.num_classes == 3 and found.model.input_size == (48, 32)
    assert found.data == str(folder) and len(found.data_digest or "") == 64


def test_later_layers_go_before_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("learning_rate = 3e-4\nsteps = 7\n[model]\ndepth = 3")
    asked = Request(
        recipe=tmp_path / "recipe.toml",
        preset="dit-paper",
        single={"steps": 8, "seed": 5},
        settings=["model.depth=4", "optimizer=muon", "steps = 9", "process.beta_end=0.03"],
    )
    found, _ = resolve(asked)
    assert (found.learning_rate, found.ema_ramp, found.steps, found.seed) == (3e-4, False, 9, 5)
    assert (found.model.depth, found.optimizer) == (4, "muon")
    assert found.process.kind == "ddpm" and found.process.beta_end == 0.03


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, BadConfig, "model: no network is named\n.*--model takes"),
        ({"model": "DiT-M/4"}, BadRequest, "did you mean"),
        ({"preset": "paper"}, BadRequest, "preset: found 'paper'; expected article, dit-paper"),
        ({"objective": "edm"}, BadRequest, "objective: found 'edm'"),
        ({"image_size": "64 by 64"}, BadRequest, "image_size"),
        ({"image_size": "62"}, BadConfig, "model: patch_size 4 does not divide"),
        ({"heads": "5"}, BadConfig, "num_heads 5 does not divide"),
        ({"heads": "many"}, BadConfig, "num_heads"),
        ({"settings": ["learning_rate"]}, BadRequest, "set: found 'learning_rate'"),
        ({"settings": ["learing_rate=1"]}, BadConfig, "did you mean learning_rate"),
        ({"settings": ["model.dept=1"]}, BadConfig, "model.dept: unknown field\n.*mean depth"),
        ({"settings": ["process.beta_begin=1"]}, BadConfig, "process.beta_begin: unknown field"),
        ({"settings": ["steps='8'"]}, BadConfig, "steps"),
        ({"settings": ["steps=2020-01-01"]}, BadConfig, "steps"),
        ({"settings": ["steps.more=1"]}, BadConfig, "steps"),
        ({"settings": ["accumulate=7"]}, BadConfig, "accumulate 7 does not divide batch_size 64"),
        ({"data": "/no/such/folder"}, BadDataset, "No such file"),
        (
            {"settings": ["steps=3", "coarse_steps=4"]},
            BadConfig,
            "coarse_steps: found 4, more than steps 3\n.*--set coarse_steps=0",
        ),
    ],
)
def test_what_is_wrong_is_named(
    asked: dict[str, object], error: type[Exception], words: str
) -> None:
    base: dict[str, object] = {"model": "DiT-S/4"} if asked else {}
    with pytest.raises(error, match=words):
        resolve(Request(**{**base, **asked}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"learing_rate = 1", "learning_rate"),
        (b"learning_rate = nan", "learning_rate"),
        (b"steps = '8'", "steps"),
        (b"batch_size = 0", "batch_size"),
        (b"coarse_steps = 100000", "coarse_steps"),
        (b"_target_ = 'os.system'", "_target_"),
        (b"a = [" + b"[" * 100_000, "recipe.toml"),
        (b"\xff\xfe", "UTF-8"),
        (b"when = 2020-01-01", "a date or time"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: bytes, words: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(text + b"\n[model]\nhidden_size = 32\nnum_heads = 2\n[process]\nkind='ddpm'\n")
    with pytest.raises(BadConfig, match=words):
        resolve(Request(recipe=file))


@pytest.mark.parametrize(
    ("width", "pictures", "heads"),
    [
        (384, 120, 6),
        (768, 9_999, 8),
        (768, 10_000, 12),
        (1024, 50_000, 8),
        (1152, 1_281_167, 16),
        (1024, 1_281_167, 16),
        (96, 500, 4),
    ],
)
def test_heads_by_the_size_of_the_data(width: int, pictures: int, heads: int) -> None:
    chosen, why = choose_heads(width, pictures)
    assert chosen == heads and width % heads == 0
    assert f"{heads} heads of {width // heads}" in why and f"{pictures:,}" in why


def test_heads_that_divide_no_width() -> None:
    with pytest.raises(BadConfig, match="from 12 to 16 divides hidden_size 136"):
        choose_heads(136, 10**7)


def test_the_choice_of_heads_is_told(tmp_path: Path) -> None:
    asked = Request(data=str(photos(tmp_path)), model="DiT-B/4", heads="auto")
    found, notes = resolve(asked)
    why = notes[-1]
    assert found.model.num_heads == 8
    assert why.startswith("8 heads of 96: 12 different pictures are a small data set")


def test_the_number_type_is_the_fast_one_here_unless_said_or_begun_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, fast = ROOT / "recipes" / "emoji.toml", "ditscope.train.request.default_dtype"
    monkeypatch.setattr(fast, lambda device: "float32")
    found, notes = resolve(Request(recipe=recipe, folder=tmp_path))
    assert found.precision == "fp32" and "no fast products of bf16" in notes[0]
    said, notes = resolve(Request(recipe=recipe, single={"precision": "bf16"}))
    assert said.precision == "bf16" and not notes
    (tmp_path / "config.json").write_text(found.model_dump_json())
    monkeypatch.setattr(fast, lambda device: "bfloat16")
    assert resolve(Request(recipe=recipe, folder=tmp_path))[0].precision == "fp32"
