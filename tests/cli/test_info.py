"""`ditscope info`: what a path or this installation is, and what it says of damage."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import typer

from ditscope.cli.info import info
from ditscope.cli.main import run as run_command
from ditscope.core.pipeline_config import PipelineConfig, write_pipeline_config
from ditscope.version import __version__
from tests.conftest import Outcome
from tests.runs.damage import forge
from tests.runs.toy import Toy, manifest_of

DIT = {
    "x_embedder.proj.weight": np.zeros((384, 4, 2, 2), np.float16),
    **{f"blocks.{i}.attn.qkv.bias": np.zeros(3, np.float32) for i in range(12)},
}


@pytest.fixture
def command(capsys):
    application = typer.Typer()
    application.command()(info)
    application.command("other")(lambda: None)  # with one command alone there is no subcommand

    def call(*arguments):
        code = run_command(application, ["info", *map(str, arguments)])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def folder(tmp_path):
    return Toy(manifest_of()).write(tmp_path / "run")


def facts(outcome):
    assert (outcome.code, outcome.err) == (0, "")
    return json.loads(outcome.out)


def test_installation(command):
    found = facts(command("--json"))
    assert found["ditscope"] == __version__ and found["python"].startswith("3.")
    assert found["devices"][0] == "cpu" and found["versions"]["numpy"] == np.__version__
    lines = command().out.splitlines()
    assert lines[0].split() == ["kind", "installation"]
    assert any(line.startswith("versions    torch ") for line in lines)


def test_run(command, folder):
    found = facts(command(folder, "--json"))
    assert (found["kind"], found["state"]) == ("run", "complete")
    assert found["labels"] == ["class 0", "class 1"] and found["qk_steps"] == [1]
    assert found["attention"] == "2 heads of width 4, 6 x 6 tokens, patches 2 x 3"
    assert found["size"].keys() == {"latents", "final", "stats", "qk", "images"}
    images = sum(path.stat().st_size for path in (folder / "images").iterdir())
    assert found["size"]["images"] == images
    text = command(folder).out
    assert "labels      class 0, class 1\n" in text and "guidance    scale 3\n" in text


def test_partial_run(command, tmp_path):
    Toy(manifest_of()).write(tmp_path / "run", steps=2)
    assert facts(command(tmp_path / "run", "--json"))["state"] == "partial: 2 of 3 steps"
    assert "problems    none" in command(tmp_path / "run", "--verify").out


def test_verified_run(command, folder):
    found = facts(command(folder, "--verify", "--json"))
    assert found["problems"] == [] and found["verified"]["files"] == len(manifest_files(folder))


def manifest_files(folder):
    return json.loads((folder / "run.json").read_text())["files"]


@pytest.mark.parametrize("options", [(), ("--verify",), ("--json",)])
def test_a_manifest_is_answered_with_its_folder(command, folder, options):
    outcome = command(folder / "run.json", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert f"give its folder: {folder}" in outcome.err


def test_damage_is_listed_and_ends_with_3(command, folder):
    chunk = folder / "data.zarr/latents/c.1.0.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[40] ^= 1
    chunk.write_bytes(data)
    forge(folder, "images/0001.png", b"no picture")
    outcome = command(folder, "--verify")
    assert outcome.code == 3
    lines = outcome.out.splitlines()
    assert lines[-3] == "problems    2"
    assert "not the ones that were written" in lines[-2] and "not a PNG" in lines[-1]
    assert command(folder).code == 0
    assert len(json.loads(command(folder, "--verify", "--json").out)["problems"]) == 2


def test_run_that_cannot_be_opened(command, folder):
    (folder / "data.zarr/latents/c.1.0.0.0.0").unlink()
    outcome = command(folder, "--json")
    assert (outcome.code, outcome.out) == (3, "")
    assert json.loads(outcome.err)["error"] == "BadRun"


def test_repair_names_what_is_lost(command, folder):
    names = [f"data.zarr/stats/{name}/c.1.0.0.0.0" for name in ("entropy", "rms_distance")]
    for name in names:
        (folder / name).unlink()
    (folder / "data.zarr/latents/zarr.json").unlink()
    assert command(folder).code == 3
    found = facts(command(folder, "--repair", "--json"))
    assert found["state"] == "complete, 2 files lost" and found["lost"] == names
    assert found["repair"] == {
        "changed": True,
        "steps": 3,
        "of": 3,
        "files": len(manifest_files(folder)),
        "rebuilt": ["data.zarr/latents/zarr.json"],
        "regained": [],
        "never written": [],
        "steps with losses": [1],
    }
    text = command(folder, "--repair", "--verify").out
    assert "repair      changed False, steps 3, of 3, files" in text
    assert "lost        2\n" + "\n".join(names) + "\n" in text and "problems    none" in text
    assert facts(command(folder, "--json"))["lost"] == names


def test_repair_of_a_run_that_was_cut_short(command, tmp_path):
    Toy(manifest_of()).write(tmp_path / "run", steps=2)
    found = facts(command(tmp_path / "run", "--repair", "--json"))
    assert found["state"] == "partial: 2 of 3 steps" and found["lost"] == []
    assert found["repair"]["never written"] == [2]


@pytest.mark.parametrize("arguments", [(), ("no-such-run",)])
def test_only_a_run_is_repaired(command, arguments):
    outcome = command("--repair", *arguments)
    assert outcome.code in (2, 3) and outcome.out == "" and "Traceback" not in outcome.err


def test_hostile_labels_are_only_text(command, tmp_path):
    manifest = manifest_of(samples=1)
    label = manifest.labels[0].model_copy(update={"name": "[red]x[/]\x1b]0;pwn\x07"})
    Toy(manifest.model_copy(update={"labels": (label,)})).write(tmp_path / "run")
    text = command(tmp_path / "run").out
    assert "[red]x[/]\\u001b]0;pwn\\u0007" in text and "\x1b" not in text


def test_edits_of_a_run(command, tmp_path):
    """In words, of whatever kind; a kind from elsewhere is only text."""
    edits = (
        {"kind": "temperature", "temperature": 1.3, "layers": [0, 20, 21, 22], "heads": None},
        {"kind": "ablate_heads", "layers": ["blocks.*"], "heads": [3, 5], "steps": []},
        {"kind": "[red]\x1b]0;pwn", "sharpness": {"a": 1}},
        {"kind": "temperature", "temperature": 2.0},
    )
    Toy(manifest_of().model_copy(update={"edits": edits})).write(tmp_path / "run")
    assert facts(command(tmp_path / "run", "--json"))["edits"][:2] == [
        "temperature 1.3 (layers 0, 20-22)",
        "ablate heads (layers blocks.*, heads 3, 5, steps none)",
    ]
    text = command(tmp_path / "run").out
    assert "edits       temperature 1.3 (layers 0, 20-22), ablate heads" in text
    assert "[red]\\u001b]0;pwn (sharpness {'a': 1}), temperature 2.0 (everywhere)" in text
    assert "\x1b" not in text
    Toy(manifest_of()).write(tmp_path / "plain")
    assert "edits       none" in command(tmp_path / "plain").out


def test_weight_file(command, tmp_path):
    safetensors.numpy.save_file(DIT, tmp_path / "w.safetensors")
    found = facts(command(tmp_path / "w.safetensors", "--json"))
    assert found["kind"] == "weights" and found["tensors"] == 13
    assert found["numbers"] == 384 * 16 + 36 and found["types"] == ["F16", "F32"]
    assert found["network"] == "DiT of width 384, 12 blocks of 6 heads, patch 2, 4 channels"
    assert "size        1" in command(tmp_path / "w.safetensors").out


def test_pickle_is_not_opened(command, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 whatever follows")
    found = facts(command(tmp_path / "w.pt", "--json"))
    assert found["format"] == "pickle: not opened here"
    assert found["next"].startswith("ditscope convert ")


def test_our_own_folder(command, tmp_path):
    model = {
        "input_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 384,
        "depth": 12,
        "num_heads": 6,
    }
    process, codec = {"kind": "flow"}, {"kind": "rgb"}
    config = PipelineConfig(model=model, process=process, codec=codec, labels=("a", "b"))
    write_pipeline_config(tmp_path, config)
    safetensors.numpy.save_file(DIT, tmp_path / "model.safetensors")
    found = facts(command(tmp_path, "--json"))
    assert found["kind"] == "pipeline" and found["classes"] == ["a", "b"]
    assert found["process"] == process and found["tensors"] == 13
    assert "blocks of 6 heads, 16 x 16 patches of 2, 4 channels" in found["network"]
    assert "process     kind flow\n" in command(tmp_path).out


@pytest.mark.parametrize("name", ["config.json", "model_index.json"])
def test_diffusers_folder(command, tmp_path, name):
    where = tmp_path if name == "config.json" else tmp_path / "transformer"
    where.mkdir(exist_ok=True)
    safetensors.numpy.save_file(DIT, where / "diffusion_pytorch_model.safetensors")
    (tmp_path / name).write_text('{"_class_name": "DiTPipeline", "_diffusers_version": "0.3"}')
    found = facts(command(tmp_path, "--json"))
    assert found["kind"].startswith("diffusers ") and found["class"] == "DiTPipeline"
    assert found["tensors"] == 13


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing-there"], 2, "no such file, folder or bundled model"),
        (["."], 2, "neither a run nor a model"),
        (["--verify"], 2, "only a run can be verified"),
        (["notes.txt", "--verify"], 3, "notes.txt"),
        (["w.pt", "--verify"], 2, "only a run can be verified"),
    ],
)
def test_what_it_cannot_say(command, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("these are notes, and no weights")
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 whatever follows")
    outcome = command(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err


def test_a_path_needs_no_torch(folder):
    code = f"""
import sys
from ditscope.cli.info import describe, verification
describe({str(folder)!r}), verification(__import__("pathlib").Path({str(folder)!r}), replay=False)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_folder(command, tmp_path):
    config = {"process": {"kind": "flow"}, "batch_size": 8, "steps": 12, "data": "emoji"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("ckpt-0000004", "ckpt-0000008", "ckpt-0000012"):
        (tmp_path / name).mkdir()
    for name in ("ckpt-0000004", "ckpt-0000008"):
        (tmp_path / name / "manifest.json").write_text("{}")
    said = json.loads(command(str(tmp_path), "--json").out)
    assert (said["kind"], said["step"], said["steps"]) == ("training", 8, "12")
    (tmp_path / "config.json").write_text("{}")
    assert "something else" in command(str(tmp_path)).err
