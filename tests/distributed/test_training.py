"""Two processes train what one trains: real processes, gloo on the CPU."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from ditscope.distributed.launch import launch
from ditscope.errors import BadConfig, NumericalError
from ditscope.train import batches, learner
from ditscope.train.checkpoint import Checkpoint, newest_checkpoint
from ditscope.train.config import TrainConfig
from ditscope.train.loop import Training
from tests.distributed.test_processes import Started, torchrun
from tests.train.tiny import config, run, same

PARTS = ("model", "ema", "optimizer", "averages")
CASES: dict[str, tuple[dict[str, object], bool]] = {
    "replicated": ({"precision": "fp32", "optimizer": "adamw"}, False),
    "replicated in parts": ({"precision": "bf16", "accumulate": 2}, False),
    "sharded": (
        {
            "precision": "fp32",
            "optimizer": "adamw",
            "coarse_steps": 4,
            "snapshot_every": 6,
            "preview_every": 12,
            "health_every": 12,
        },
        True,
    ),
    "sharded in parts": ({"precision": "bf16", "accumulate": 2, "compile": True}, True),
}
"""What is trained, and whether the weights are spread over the processes (FSDP2) or not (DDP)."""


def train_all(group, base: Path) -> None:
    """What each of the two processes does in the tests of this file."""
    torch.set_num_threads(1)
    learner.BACKEND = "aot_eager"
    for name, (settings, sharded) in CASES.items():
        train(group, config(**settings), base / name, sharded)
    for name in ("one, then replicated", "one, then sharded"):
        train(group, plain(), base / name, sharded="sharded" in name)
    train(group, plain().model_copy(update={"steps": 4}), base / "sharded, then one", True)
    poison(6, row=5)  # a picture of rank 1
    for sharded in (False, True):
        with pytest.raises(NumericalError, match="at step 6, pictures 53; first NaN or Inf"):
            train(group, plain(), base / f"poisoned {sharded}", sharded)
    for name, changes in {"odd": {"batch_size": 7}, "parts": {"accumulate": 8}}.items():
        with pytest.raises(BadConfig, match=r"batch_size: .* cannot be divided evenly among 2"):
            Training(config(**changes), base / name, group)


def train(group, settings, folder: Path, sharded: bool) -> None:
    with Training(settings, folder, group, sharded=sharded) as training:
        training.run(lambda line: None, lambda text: None)


def plain():
    return config(precision="fp32", optimizer="adamw")


def poison(step: int, row: int) -> None:
    """One pixel of one picture of a step is NaN, in this process."""
    make = batches.batch

    def bad(settings, source, number, rows):
        made = make(settings, source, number, rows)
        if number == step and row in rows:
            made.x0[row - rows.start, 0, 0, 0] = float("nan")
        return made

    batches.batch = bad


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The folder of the trainings that two processes have done."""
    base = tmp_path_factory.mktemp("together")
    for name in ("one, then replicated", "one, then sharded"):
        run(plain().model_copy(update={"steps": 4}), base / name)
    launch(train_all, (base,), processes=2)
    return base


def losses(folder: Path) -> torch.Tensor:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return torch.tensor([line["loss"] for line in lines if "loss" in line])


def saved(folder: Path) -> Checkpoint:
    found, damaged = newest_checkpoint(folder)
    assert found is not None and damaged == []
    return found


def assert_close(found: Checkpoint, wanted: Checkpoint, tolerance: float) -> None:
    assert found.step == wanted.step and found.pictures == wanted.pictures
    for part in PARTS:
        mine, theirs = getattr(found, part), getattr(wanted, part)
        assert mine.keys() == theirs.keys()  # no `module.`, and every name
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["replicated", "replicated in parts"])
def test_two_processes_are_one_that_computes_in_twice_as_many_parts(
    together: Path, tmp_path: Path, name: str
) -> None:
    """The same sums, so the same bits: pictures, timesteps, noise, dropped labels, and all else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = {**CASES[name][0]}
    run(config(**{**settings, "accumulate": 2 * int(str(settings.get("accumulate", 1)))}), tmp_path)
    torch.set_num_threads(threads)
    for part in PARTS:
        assert same(getattr(saved(together / name), part), getattr(saved(tmp_path), part))
    assert torch.equal(losses(together / name), losses(tmp_path))


@pytest.mark.parametrize("name", CASES)
def test_the_loss_curve_is_that_of_one_process(together: Path, tmp_path: Path, name: str) -> None:
    settings = {**CASES[name][0], "compile": False}
    run(config(**settings), tmp_path)
    low = settings["precision"] == "bf16"
    torch.testing.assert_close(
        losses(together / name), losses(tmp_path), rtol=2e-3 if low else 1e-6, atol=0
    )
    assert_close(saved(together / name), saved(tmp_path), 3e-2 if low else 1e-4)
    said = [json.loads(line) for line in (together / name / "log.jsonl").read_text().splitlines()]
    assert said[0]["event"] == "processes" and said[0]["number"] == 2


def test_sharded_weights_are_looked_at_whole(together: Path) -> None:
    assert (together / "sharded" / "previews" / "0000012.png").is_file()
    lines = (together / "sharded" / "log.jsonl").read_text().splitlines()
    (health,) = (line for line in map(json.loads, lines) if line.get("event") == "attention")
    assert [layer["site"] for layer in health["layers"]] == ["blocks.0.attn", "blocks.1.attn"]


@pytest.mark.parametrize("name", ["one, then replicated", "one, then sharded", "sharded, then one"])
def test_another_number_of_processes_goes_on(together: Path, tmp_path: Path, name: str) -> None:
    run(plain(), tmp_path)
    if name == "sharded, then one":
        assert saved(together / name).step == 4
        run(plain(), together / name)
    assert_close(saved(together / name), saved(tmp_path), 1e-4)
    torch.testing.assert_close(losses(together / name), losses(tmp_path), rtol=1e-6, atol=0)


@pytest.mark.parametrize("sharded", [False, True])
def test_nan_in_one_process_stops_all_before_the_step(together: Path, sharded: bool) -> None:
    folder = together / f"poisoned {sharded}"
    assert json.loads((folder / "failure.json").read_text())["pictures"] == [53]
    assert saved(folder).step == 6
    assert all(torch.isfinite(tensor).all() for tensor in saved(folder).model.values())


RECIPE = """
data = "emoji"
steps = 100000
batch_size = 4
log_every = 2
save_every = 100000
[model]
input_size = 16
patch_size = 4
in_channels = 3
hidden_size = 32
depth = 1
num_heads = 2
num_classes = 40
learn_sigma = false
[process]
kind = "flow"
"""


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`line(options)`: what is typed after `ditscope` to train in the folder `t`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return lambda *options: ["train", "recipe.toml", "--out", "t", *map(str, options)]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals(line, tmp_path: Path, number: signal.Signals) -> None:
    """A terminal's to all of them, SIGTERM to the command, SIGKILL to one of its processes."""
    command = Started(line("--processes", 2, *(["--shard"] if number == signal.SIGTERM else [])))
    log = tmp_path / "t" / "log.jsonl"
    command.wait_for(log)
    while len(log.read_text().splitlines()) < 3:
        assert command.process.poll() is None, command.process.communicate()
    if number == signal.SIGINT:
        os.killpg(command.process.pid, number)
    elif number == signal.SIGTERM:
        command.process.send_signal(number)
    else:
        command.ranks[-1].send_signal(number)
    code, out, err = command.end()
    assert out == "" and "Traceback" not in err
    assert not (tmp_path / "t" / "lock").exists()
    if number == signal.SIGKILL:
        assert code == 4
        assert "was ended by SIGKILL" in err and "the same command" in err
        return
    assert code == 128 + number, err
    assert "saved; the same command goes on" in err
    said = json.loads(log.read_text().splitlines()[-1])
    assert said == {"step": saved(tmp_path / "t").step, "event": "stopped", "signal": number.name}


def test_under_torchrun(line, tmp_path: Path) -> None:
    options = ("--steps", 4, "--set", "precision=fp32", "--json", "--export", "p")
    done = torchrun(line(*options), 2)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["step"], said["pictures"]) == (4, 16)
    assert sorted(os.listdir()) == ["p", "recipe.toml", "t"]
    settings = TrainConfig.model_validate(json.loads((tmp_path / "t" / "config.json").read_text()))
    run(settings, tmp_path / "one")
    assert_close(saved(tmp_path / "t"), saved(tmp_path / "one"), 1e-4)


def test_bad_options_start_no_process(cli, line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ditscope.distributed.launch.launch", lambda *_, **__: pytest.fail("started")
    )
    for options, words in {
        ("--processes", "0"): "--processes",
        ("--processes", "1000"): "--processes",
        ("--processes", "3"): "cannot be divided evenly among 3 processes",
        ("--processes", "2", "--set", "accumulate=4"): "expected a multiple of 8",
    }.items():
        code, out, err = cli(*line(*options))
        assert (code, out) == (2, "") and words in err
    assert not os.path.exists("t")
