"""Whatever is at a path is read into the same two things. C18 and C19 of docs/hardening.md."""

import json

import pytest
import torch

from ditscope.core.pipeline_config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    PipelineConfig,
    read_pipeline_config,
    write_pipeline_config,
)
from ditscope.diffusion.ddpm import DDPMProcess
from ditscope.errors import BadCheckpoint, BadRequest
from ditscope.model.diffusers_format import export_diffusers
from ditscope.model.sources import read_source
from ditscope.model.weights import ModelWeights, save_weights
from tests.model.golden import MODELS, TINY, config, randomised, weights

STATE = dict(randomised(TINY).state_dict())
OURS = PipelineConfig(
    model=TINY.model_dump(mode="json"),
    process={"kind": "flow", "prediction": "x"},
    codec={"kind": "rgb"},
    labels=("cat", "dog", "</script>"),
    defaults={"steps": 40},
    training={"pictures": 10_000},
)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


@pytest.fixture
def ours(tmp_path):
    folder = tmp_path / "ours"
    folder.mkdir()
    write_pipeline_config(folder, OURS)
    save_weights(folder / WEIGHTS_FILE, STATE)
    return folder


@pytest.fixture
def theirs(tmp_path):
    """A diffusers pipeline folder, with parts as its scripts save them."""
    folder = tmp_path / "theirs"
    for part in ("transformer", "scheduler", "vae"):
        (folder / part).mkdir(parents=True)
    export_diffusers(ModelWeights(TINY, STATE), folder / "transformer")
    trees = {
        "model_index.json": {
            "_class_name": "DiTPipeline",
            "id2label": {"0": "tench, Tinca tinca", "1": "goldfish", "2": "shark"},
            "transformer": ["diffusers", "DiTTransformer2DModel"],
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            "beta_end": 0.03,
            "beta_schedule": "linear",
            "beta_start": 0.0002,
            "clip_sample": False,
            "num_train_timesteps": 500,
            "prediction_type": "epsilon",
            "trained_betas": None,
        },
        "vae/config.json": {"_class_name": "AutoencoderKL", "scaling_factor": 0.5},
    }
    for name, tree in trees.items():
        (folder / name).write_text(json.dumps(tree))
    return folder


def edit_json(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_our_folder_comes_back_as_it_was_written(ours):
    found = read_source(ours)
    assert found.config == OURS
    assert found.weights.config == TINY
    assert same(found.weights.state, STATE)


def test_published_weights_come_with_the_published_process_and_numbers_for_names(tmp_path):
    save_weights(tmp_path / "w.safetensors", weights(MODELS[1]))
    found = read_source(tmp_path / "w.safetensors", num_heads=4)
    assert found.weights.config == config(MODELS[1])
    assert found.config.model == json.loads(config(MODELS[1]).model_dump_json())
    assert DDPMProcess(**found.config.process) == DDPMProcess(learn_sigma=False)
    assert found.config.codec == {"kind": "latent", "scale": 0.18215}
    assert found.config.labels == ("0", "1", "2", "3", "4", "5", "6")


def test_a_diffusers_model_folder(theirs):
    found = read_source(theirs / "transformer")
    assert same(found.weights.state, STATE)
    assert DDPMProcess(**found.config.process) == DDPMProcess()


def test_a_diffusers_pipeline_says_its_names_its_process_and_its_autoencoder(theirs):
    found = read_source(theirs)
    assert same(found.weights.state, STATE)
    assert found.config.labels == ("tench, Tinca tinca", "goldfish", "shark")
    assert DDPMProcess(**found.config.process) == DDPMProcess(
        num_timesteps=500, beta_start=2e-4, beta_end=0.03
    )
    assert found.config.codec == {"kind": "latent", "scale": 0.5}
    (theirs / "vae" / "diffusion_pytorch_model.safetensors").touch()
    assert read_source(theirs).config.codec["autoencoder"] == "vae"


@pytest.mark.parametrize(
    ("file", "fields", "problem"),
    [
        ("model_index.json", {"id2label": {"0": "a", "1": "b"}}, "does not name each class once"),
        ("model_index.json", {"id2label": {"0": "a", "1": "b", "3": "c"}}, "expected 0 to 2"),
        ("model_index.json", {"id2label": {"0": "a", "1": "b", "2": 3}}, "id2label: 3 is not a"),
        ("model_index.json", {"id2label": ["a", "b", "c"]}, "does not name each class once"),
        ("model_index.json", {"custom_pipeline": "x.py"}, "custom_pipeline: this field makes"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "beta_schedule"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas"),
        ("scheduler/scheduler_config.json", {"auto_map": {}}, "auto_map: this field makes"),
        ("vae/config.json", {"scaling_factor": "1"}, "scaling_factor: Input should be a valid"),
        ("vae/config.json", {"auto_map": {}}, "auto_map: this field makes"),
    ],
)
def test_a_diffusers_pipeline_of_another_kind_is_refused(theirs, file, fields, problem):
    edit_json(theirs / file, **fields)
    with pytest.raises(BadCheckpoint) as caught:
        read_source(theirs)
    assert problem in str(caught.value)
    assert str(theirs / file) in str(caught.value)


def test_a_diffusers_pipeline_without_names_gets_numbers(theirs):
    edit_json(theirs / "model_index.json", id2label=None)
    assert read_source(theirs).config.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"version": 2}, "version: made by format version 2, this is 1\n  update ditscope"),
        ({"version": "1"}, "version: Input should be 1"),
        ({"version": 0}, "version: Input should be 1"),
        ({"format": "other"}, "is the configuration of something else"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map: this field makes other programs"),
        ({"codec": {"a": [{"custom_pipeline": "evil.py"}]}}, "custom_pipeline: this field makes"),
        ({"lables": []}, "lables: unknown field\n  did you mean labels?"),
        ({"labels": [1, 2, 3]}, "labels.0: Input should be a valid string"),
        ({"model": {**OURS.model, "depth": "2"}}, "model.depth: Input should be a valid integer"),
        ({"model": {**OURS.model, "num_heads": 3}}, "model: num_heads 3 does not divide"),
        ({"model": {**OURS.model, "_target_": "os.system"}}, "model._target_"),
    ],
)
def test_a_configuration_that_is_not_ours_is_refused(ours, fields, problem):
    edit_json(ours / CONFIG_FILE, **fields)
    with pytest.raises(BadCheckpoint) as caught:
        read_source(ours)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(str(ours / CONFIG_FILE))


def test_a_configuration_of_another_format_is_refused_by_its_reader(ours):
    edit_json(ours / CONFIG_FILE, format="other")
    with pytest.raises(BadCheckpoint, match="format: is 'other'; expected ditscope-pipeline"):
        read_pipeline_config(ours)


def test_places_where_nothing_can_be_read(tmp_path, ours):
    (tmp_path / "empty").mkdir()
    (ours / WEIGHTS_FILE).unlink()
    for place, problem in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "empty", "holds no config.json"),
        (ours, "model.safetensors: cannot be read: No such file"),
    ):
        with pytest.raises(BadCheckpoint, match=problem):
            read_source(place)


@pytest.mark.parametrize(
    ("place", "options", "field"),
    [
        ("ours", {"num_heads": 2}, "num_heads"),
        ("ours", {"part": "ema"}, "part"),
        ("ours", {"frequency_shift": 0}, "frequency_shift"),
        ("theirs", {"num_heads": 2}, "num_heads"),
        ("ours/model.safetensors", {"frequency_shift": 0}, "frequency_shift"),
        ("ours/model.safetensors", {"num_heads": 2, "part": "ema"}, "part"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, ours, theirs, place, options, field):
    with pytest.raises(BadRequest, match="has no meaning for") as caught:
        read_source(tmp_path / place, **options)
    assert caught.value.field == field
