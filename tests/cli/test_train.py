"""`ditscope train` from pictures to a pipeline that draws."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ditscope.cli.main import main
from ditscope.core.strict_json import read
from ditscope.pipeline import load
from ditscope.train.checkpoint import checkpoints
from tests.data.test_pictures import photos

NETWORK = "hidden_size = 32\ndepth = 1\nnum_heads = 2\npatch_size = 4\n"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A folder of pictures, one of them broken, and a network for them."""
    folder = photos(tmp_path / "photos")
    (folder / "class 1" / "2.png").write_bytes(b"\x89PNG")
    (tmp_path / "net.toml").write_text(NETWORK)
    return [
        *("train", "--data", str(folder), "--model", str(tmp_path / "net.toml")),
        *("--out", str(tmp_path / "t"), "--image-size", "8x16", "--objective", "flow"),
        *("--batch-size", "6", "--set", "log_every=2", "--steps"),
    ]


def test_a_folder_of_pictures(options: list[str], tmp_path: Path, capsys) -> None:
    pipeline = tmp_path / "pipeline"
    assert main([*options, "4", "--heads", "auto", "--export", str(pipeline), "--json"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["step"], told["left_out"]) == (4, 1)
    assert "4 heads of 8: 12 different pictures are a small data set" in said.err
    assert said.err.count("left out") == 1 and "2.png" in said.err
    lines = [json.loads(line) for line in (tmp_path / "t" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4]
    assert [line["event"] for line in lines if "event" in line] == ["unreadable picture"]
    saved = read(tmp_path / "t" / "config.json")
    assert saved["labels"] == ["class 0", "class 1", "class 2"] and saved["schedule"] == "cosine"
    pipe = load(pipeline, dtype="float32")
    assert pipe.labels == ("class 0", "class 1", "class 2")
    assert pipe.latent_shape == (3, 8, 16) and pipe.model.config.num_heads == 4


def test_the_same_command_goes_on(options: list[str], tmp_path: Path, capsys) -> None:
    assert main([*options, "2"]) == 0
    assert main([*options, "3"]) == 0
    assert "going on at step 2" in capsys.readouterr().err
    assert checkpoints(tmp_path / "t")[-1].name == "ckpt-0000003"
    assert main([*options, "3", "--seed", "9"]) == 2
    assert "seed: this training has 0, you asked for 9" in capsys.readouterr().err


def test_data_that_changed_is_refused(options: list[str], tmp_path: Path, capsys) -> None:
    assert main([*options, "2"]) == 0
    os.remove(tmp_path / "photos" / "class 0" / "0.png")
    assert main([*options, "3"]) == 3
    assert "files came, went or changed their size" in capsys.readouterr().err


def test_too_many_broken_files_end_it(options: list[str], capsys) -> None:
    assert main([*options, "2", "--set", "max_bad_pictures=0"]) == 3
    assert "pictures that cannot be read: 1, such as " in capsys.readouterr().err


def test_export_of_a_step_as_a_pipeline(options: list[str], tmp_path: Path, capsys) -> None:
    more = ["--set", "snapshot_every=2", "--set", "save_every=2"]
    assert main([*options, "8", *more]) == 0
    capsys.readouterr()
    places = (str(tmp_path / "t"), str(tmp_path / "early"))
    assert main(["export", *places, "--step", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["step"], said["pictures"], said["ema_length"]) == (4, 24, 0.1)
    assert "no checkpoint of step 4 is kept" in said["notes"][0]
    assert load(tmp_path / "early").labels == ("class 0", "class 1", "class 2")
    assert main(["export", *places]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["export", *places, "--ema-length", "0.08", "--overwrite"]) == 0
    said = capsys.readouterr()
    assert "(step 8)" in said.out and "made of 8 averages" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("t", "t"), 2, "is the folder of the training"),
        (("t", "no/p"), 4, "its parent folder is missing"),
        (("p", "q"), 3, "config.json: cannot be read"),
        (("t", "q", "--step", "3"), 3, "no snapshots"),
        (("t", "q", "--ema-length", "1"), 2, "expected 0.01 to 0.28"),
        (("t", "q", "--step", "0"), 2, "--step"),
    ],
)
def test_exports_that_cannot_be(
    options: list[str], tmp_path: Path, capsys, monkeypatch, arguments, code, message
) -> None:
    assert main([*options, "2"]) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == code
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err and said.out == ""
    assert not (tmp_path / "q").exists()


def test_a_device_that_is_not_there(
    options: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*options, "2", "--device", "cuda"]) == 4
    assert "there is no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
