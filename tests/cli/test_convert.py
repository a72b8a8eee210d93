"""`ditscope convert`: whole folders or nothing, and the same numbers on the other side."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from ditscope.core.pipeline_config import PipelineConfig, write_pipeline_config
from ditscope.model.diffusers_format import load_in_diffusers
from ditscope.model.sources import AUTOENCODER_FILES, read_source
from ditscope.model.weights import save_weights
from tests.model.golden import MODELS, TINY, config, randomised, relative, tensors, weights

STATE = dict(randomised(TINY).state_dict())


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_weights(tmp_path / "golden.safetensors", weights(MODELS[0]))
    return tmp_path / "golden.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder of ours that is not of the published kind."""
    (tmp_path / "flow").mkdir()
    save_weights(tmp_path / "flow" / "model.safetensors", STATE)
    write_pipeline_config(
        tmp_path / "flow",
        PipelineConfig(
            model=TINY.model_dump(mode="json"),
            process={"kind": "flow"},
            codec={"kind": "rgb"},
            labels=("cat", "dog", "bird"),
            training={"pictures": 7},
        ),
    )
    return tmp_path / "flow"


def same(found, expected):
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_published_weights_go_to_diffusers_and_back_with_the_published_numbers(
    cli, source, tmp_path
):
    there, back = tmp_path / "there", tmp_path / "back"
    options = ("--to", "diffusers", "--num-heads", "3")
    code, out, err = cli("convert", str(source), str(there), *options)
    assert (code, out.count("parameters")) == (0, 1)
    assert "note: diffusers embeds timesteps with another divisor (127)" in err
    numbers = tensors(MODELS[0])
    given = {"timestep": numbers["in.t"], "class_labels": numbers["in.y"]}
    with torch.no_grad():
        found = load_in_diffusers(there)(numbers["in.x"], **given).sample
    assert relative(found, numbers["out.forward"]) < 1e-6

    assert cli("convert", str(there), str(back)).code == 0
    assert read_source(back).weights.config == config(MODELS[0])
    assert same(read_source(back).weights.state, weights(MODELS[0]))
    assert sorted(os.listdir(back)) == ["config.json", "model.safetensors"]


def test_a_pickled_file_is_converted(cli, tmp_path, monkeypatch):
    from ditscope.model import published

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        published, "_convert_in_child", lambda a, b, part, _: published.convert(a, b, part)
    )
    checkpoint = {"ema": STATE, "model": {name: tensor + 1 for name, tensor in STATE.items()}}
    torch.save(checkpoint, tmp_path / "0001000.pt")
    chosen = ("--part", "model", "--num-heads", "2", "--dtype", "bfloat16", "--json")
    code, out, err = cli("convert", str(tmp_path / "0001000.pt"), str(tmp_path / "out"), *chosen)
    assert code == 0
    assert 'note: the "model" weights of the training checkpoint were taken' in err
    report = json.loads(out)
    assert report["destination"] == str(tmp_path / "out")
    assert report["parameters"] == TINY.architecture.parameters
    assert 'the "model" weights' in report["notes"][0]
    expected = {name: tensor.bfloat16() for name, tensor in checkpoint["model"].items()}
    found = read_source(tmp_path / "out").weights.state
    assert same(found, expected)
    assert found["pos_embed"].dtype == torch.bfloat16


def test_a_folder_of_ours_keeps_all_it_knows(cli, folder, tmp_path):
    code, _, err = cli("convert", str(folder), str(tmp_path / "out"), "--dtype", "float16")
    assert (code, err) == (0, "")
    assert read_source(tmp_path / "out").config == read_source(folder).config


def test_what_a_diffusers_folder_cannot_carry_is_told(cli, folder, tmp_path):
    _, _, err = cli("convert", str(folder), str(tmp_path / "out"), "--to", "diffusers")
    assert "note: class names are not part of a diffusers model folder" in err
    assert "note: the network was trained on the flow process" in err


def test_the_autoencoder_of_a_pipeline_comes_along(cli, folder, tmp_path):
    pipeline = tmp_path / "pipeline"
    cli("convert", str(folder), str(pipeline / "x"), "--to", "diffusers")  # no such parent: refused
    pipeline.mkdir()
    assert cli("convert", str(folder), str(pipeline / "transformer"), "--to", "diffusers").code == 0
    (pipeline / "vae").mkdir()
    (pipeline / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    for name in AUTOENCODER_FILES:
        (pipeline / "vae" / name).write_text("{}")
    (pipeline / "vae" / "modeling.py").touch()
    assert cli("convert", str(pipeline), str(tmp_path / "out")).code == 0
    assert sorted(os.listdir(tmp_path / "out" / "vae")) == sorted(AUTOENCODER_FILES)
    assert read_source(tmp_path / "out").config.codec["autoencoder"] == "vae"


def listing(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


class TestRefusals:
    """Each leaves everything as it was."""

    @pytest.fixture(autouse=True)
    def unchanged(self, tmp_path, source, folder):
        (tmp_path / "empty.pt").touch()
        before = listing(tmp_path)
        yield
        assert listing(tmp_path) == before

    @pytest.mark.parametrize(
        ("arguments", "code", "problem"),
        [
            (("golden.safetensors", "out"), 3, "give num_heads (--num-heads)"),
            (("golden.safetensors", "out", "--num-heads", "5"), 3, "num_heads 5 does not divide"),
            (("golden.safetensors", "out", "--to", "onnx"), 2, "'onnx'"),
            (("golden.safetensors", "none/out"), 4, "its parent folder does not exist"),
            (("empty.pt", "out"), 3, "empty.pt: is empty"),
            (("none", "out"), 3, "none: no such file or folder"),
            (("flow", "flow"), 2, "is the source, or one holds the other"),
            (("flow", "flow/out"), 2, "is the source, or one holds the other"),
            (("flow", "."), 2, "is the source, or one holds the other"),
            (("golden.safetensors", "flow"), 2, "flow: already exists"),
            (("flow", "out", "--num-heads", "2"), 2, "num_heads: has no meaning for a folder"),
        ],
    )
    def test_message_and_exit_code(self, cli, tmp_path, monkeypatch, arguments, code, problem):
        monkeypatch.chdir(tmp_path)
        found, out, err = cli("convert", *arguments)
        assert (found, out) == (code, "")
        assert problem in err

    def test_a_stranger_s_folder_is_not_replaced(self, cli, tmp_path, source):
        (tmp_path / "flow" / "thesis.tex").touch()
        arguments = (str(source), str(tmp_path / "flow"), "--num-heads", "3", "--overwrite")
        code, _, err = cli("convert", *arguments)
        (tmp_path / "flow" / "thesis.tex").unlink()
        assert code == 2
        assert "holds files that would be lost: thesis.tex" in err


@pytest.mark.parametrize(
    ("place", "code"), [("none/out", 4), ("readonly/out", 4), ("taken", 2), ("tight", 4)]
)
def test_a_bad_place_is_known_before_the_pickle_is_opened(cli, tmp_path, monkeypatch, place, code):
    from ditscope.model import published

    monkeypatch.setattr(published, "_convert_in_child", lambda *_: pytest.fail("was opened"))
    monkeypatch.setattr("os.access", lambda path, mode: "readonly" not in str(path))
    for name in ("readonly", "taken"):
        (tmp_path / name).mkdir()
    if place == "tight":
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    torch.save(STATE, tmp_path / "w.pt")
    result = cli("convert", str(tmp_path / "w.pt"), str(tmp_path / place))
    assert (result.code, result.out) == (code, "")


def test_a_pipeline_s_small_files_are_read_before_its_pickle(cli, tmp_path, monkeypatch):
    from ditscope.model import diffusers_format

    monkeypatch.setattr(diffusers_format, "read_pickled", lambda *_: pytest.fail("was opened"))
    for name in ("transformer", "scheduler"):
        (tmp_path / "in" / name).mkdir(parents=True)
    (tmp_path / "in" / "model_index.json").write_text("{}")
    (tmp_path / "in" / "scheduler" / "scheduler_config.json").write_text('{"beta_end": "high"}')
    result = cli("convert", str(tmp_path / "in"), str(tmp_path / "out"))
    assert result.code == 3
    assert "scheduler_config.json: beta_end" in result.err


def test_an_earlier_conversion_is_replaced_on_request(cli, source, folder):
    code, *_ = cli("convert", str(source), str(folder), "--num-heads", "3", "--overwrite")
    assert code == 0
    assert read_source(folder).weights.config == config(MODELS[0])


def test_weights_that_are_not_finite_are_written_on_request_only(cli, tmp_path):
    broken = {**STATE, "final_layer.linear.bias": torch.full((32,), torch.nan)}
    save_weights(tmp_path / "w", broken)
    arguments = (str(tmp_path / "w"), str(tmp_path / "out"), "--num-heads", "2")
    code, _, err = cli("convert", *arguments)
    assert code == 3
    assert "1 NaN or infinite: final_layer.linear.bias" in err
    assert not (tmp_path / "out").exists()
    assert cli("convert", *arguments, "--allow-nonfinite").code == 0


def test_errors_are_json_where_json_is_asked_for(cli, tmp_path):
    code, out, err = cli("convert", str(tmp_path / "none"), str(tmp_path / "out"), "--json")
    assert (code, out) == (3, "")
    assert json.loads(err)["error"] == "BadCheckpoint"
