"""Whatever ends a training, at whatever moment, the same command again ends at the same weights."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ditscope.core import atomic
from ditscope.errors import BadCheckpoint, BadConfig, NumericalError, ResourceError
from ditscope.model.weights import save_weights
from ditscope.train import checkpoint as checkpoint_module
from ditscope.train.batches import Batch, batch
from ditscope.train.checkpoint import checkpoints, load_checkpoint, newest_checkpoint
from ditscope.train.config import TrainConfig
from ditscope.train.journal import Progress
from ditscope.train.loop import Training
from ditscope.train.sources import Source
from tests.train.tiny import config, run, same

ROOT = Path(__file__).parents[2]
KILLED, RESOURCE, FINISHED, UNTOUCHED = -9, 4, 0, 98


def child(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def broken(*arguments: object) -> list[dict[str, object]]:
    with child("-m", "tests.train.crash", *map(str, arguments)) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_killing_at_random_moments() -> None:
    *kills, end = broken("clock", 12)
    assert len(kills) == 12 and {kill["status"] for kill in kills} <= {KILLED, FINISHED}
    assert all(kill["damaged"] == [] for kill in kills)
    assert end == {"status": FINISHED, "equal": True, "log": True, "left": []}


@pytest.mark.parametrize(("how", "every"), [("kill", 6), ("fail", 6)])
def test_breaking_any_file_operation(how: str, every: int) -> None:
    """Killed there, or told that the disk is full: whole checkpoints, and the same end."""
    found = broken(how, every)
    assert found[-1]["status"] == UNTOUCHED and len(found) > 60 // every
    ends = {KILLED, UNTOUCHED} if how == "kill" else {RESOURCE, FINISHED, UNTOUCHED}
    assert {case["status"] for case in found} <= ends
    for case in found:
        assert case["damaged"] == [] and case["again"] == FINISHED, case
        assert case["equal"] and case["left"] == [], case
    # One save that fails is made up for by the next, so only a kill leaves the middle.
    assert {case["step"] for case in found} >= ({0, 2, 6} if how == "kill" else {0, 6})


RECIPE = """
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


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def at_work(request: pytest.FixtureRequest, tmp_path: Path):
    """The command, some steps into a training, in `t`; and a signal."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    log = tmp_path / "t" / "log.jsonl"
    command = ("-m", "ditscope", "train", str(tmp_path / "recipe.toml"), "--out")
    with child(*command, str(tmp_path / "t")) as process:
        while not (log.exists() and log.stat().st_size) and process.poll() is None:
            time.sleep(0.05)
        yield process, request.param
        process.kill()


def test_a_signal_saves_and_ends(at_work, tmp_path: Path) -> None:
    process, number = at_work
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], err
    assert "saved; the same command goes on" in err and "Traceback" not in err
    found, damaged = newest_checkpoint(tmp_path / "t")
    assert found is not None and found.step > 0 and damaged == []
    said = (tmp_path / "t" / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(said) == {"step": found.step, "event": "stopped", "signal": number.name}
    assert not (tmp_path / "t" / "lock").exists()


@pytest.mark.parametrize("at_work", [signal.SIGTERM], indirect=True)
def test_a_folder_has_one_training(at_work, tmp_path: Path) -> None:
    process, _ = at_work
    with pytest.raises(ResourceError, match=f"another training.*by process {process.pid} on"):
        Training(config(), tmp_path / "t")
    process.kill()
    process.wait()
    assert (tmp_path / "t" / "lock").exists()
    with pytest.raises(BadConfig, match="this training has"):  # the lock is no obstacle any more
        Training(config(), tmp_path / "t")


def test_two_in_one_process_and_none_after_a_failure(tmp_path: Path) -> None:
    with Training(config(), tmp_path / "t"):
        with pytest.raises(ResourceError, match=f"process {os.getpid()}"):
            Training(config(), tmp_path / "t")
    with pytest.raises(BadConfig):
        Training(config(learning_rate=1e-9), tmp_path / "t")
    Training(config(), tmp_path / "t").close()


def test_leftovers_go_and_namesakes_stay(tmp_path: Path) -> None:
    run(config(), tmp_path / "t")
    left = [f"{name}-host-12-0123abcd" for name in ("ckpt-0000016.tmp", "ckpt-0000016.old")]
    for name in (*left, "ckpt-0000016.tmp-mine"):
        (tmp_path / "t" / name).mkdir()
        (tmp_path / "t" / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / "t" / "config.json.tmp-host-12-0123abcd").write_text("{")
    Training(config(), tmp_path / "t").close()
    names = {path.name for path in (tmp_path / "t").iterdir()}
    assert names == {
        "ckpt-0000008",
        "ckpt-0000012",
        "ckpt-0000016.tmp-mine",
        "config.json",
        "log.jsonl",
    }


def test_a_damaged_checkpoint_is_named_and_skipped(tmp_path: Path) -> None:
    settings = config()
    whole, _ = run(settings, tmp_path / "t")
    file = checkpoints(tmp_path / "t")[-1] / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found, damaged = newest_checkpoint(tmp_path / "t")
    assert found is not None and found.step == 8
    assert len(damaged) == 1 and "ema.safetensors" in damaged[0]
    again, _ = run(settings.model_copy(update={"save_every": 3}), tmp_path / "t")
    assert again.damaged == damaged
    assert same(again.ema.state_dict(), whole.ema.state_dict())
    assert [path.name for path in checkpoints(tmp_path / "t")] == ["ckpt-0000009", "ckpt-0000012"]
    assert load_checkpoint(checkpoints(tmp_path / "t")[-1]).step == 12


def test_a_save_before_a_damaged_checkpoint_is_kept(tmp_path: Path) -> None:
    run(config(), tmp_path / "t")
    for name in ("ckpt-0000008", "ckpt-0000012"):
        (tmp_path / "t" / name).rename(tmp_path / "t" / name.replace("00000", "00001"))
    (tmp_path / "t" / "ckpt-0000112" / "state.json").write_text("{}")
    (tmp_path / "t" / "ckpt-0000108" / "state.json").unlink()
    with pytest.raises(BadCheckpoint, match="no checkpoint is whole"):
        Training(config(), tmp_path / "t")
    for path in checkpoints(tmp_path / "t"):
        (path / "manifest.json").unlink()
    with Training(config(), tmp_path / "u") as training:
        for path in checkpoints(tmp_path / "t"):
            path.rename(tmp_path / "u" / path.name)
        training.save()
    assert [path.name for path in checkpoints(tmp_path / "u")] == ["ckpt-0000000"]


def test_a_signal_is_obeyed_though_a_callback_fails(tmp_path: Path) -> None:
    def tell(text: str) -> None:
        raise ValueError(text)

    def report(line: Progress) -> None:
        signal.raise_signal(signal.SIGINT)

    with Training(config(), tmp_path / "t") as training, pytest.raises(KeyboardInterrupt):
        training.run(report, tell)
    found, _ = newest_checkpoint(tmp_path / "t")
    assert found is not None and found.step == 4


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next so many optimiser states cannot be written."""
    left = [times]

    def full(path: Path, state: dict[str, torch.Tensor]) -> None:
        if path.name == "optimizer.safetensors" and left[0]:
            left[0] -= 1
            path.write_bytes(b"the first half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_weights(path, state)

    monkeypatch.setattr(checkpoint_module, "save_weights", full)


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(steps=16)
    whole, _ = run(settings, tmp_path / "whole")
    fill_the_disk(monkeypatch, 2)
    told: list[str] = []
    with Training(settings, tmp_path / "t") as training:
        training.run(lambda line: None, told.append)
    assert len(told) == 2 and "no checkpoint at step 4, will try again" in told[0]
    assert "No space left on device" in told[0]
    assert same(whole.model.state_dict(), training.model.state_dict())
    assert [path.name for path in checkpoints(tmp_path / "t")] == ["ckpt-0000012", "ckpt-0000016"]
    assert not [path for path in (tmp_path / "t").iterdir() if atomic.UNFINISHED.match(path.name)]


def test_a_disk_that_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(steps=100)
    run(settings.model_copy(update={"steps": 4}), tmp_path / "t")
    fill_the_disk(monkeypatch, 3)
    with (
        Training(settings, tmp_path / "t") as training,
        pytest.raises(ResourceError, match="space"),
    ):
        training.run(lambda line: None, lambda text: None)
    assert training.step == 16
    found, damaged = newest_checkpoint(tmp_path / "t")
    assert found is not None and found.step == 4 and damaged == []


def poisoned(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """One pixel of one picture of these steps is NaN."""

    def bad(settings: TrainConfig, source: Source, step: int, rows: range) -> Batch:
        made = batch(settings, source, step, rows)
        if step in steps:
            made.x0[3, 0, 0, 0] = float("nan")
        return made

    monkeypatch.setattr("ditscope.train.batches.batch", bad)


def test_nan_stops_before_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = run(config(steps=6), tmp_path / "before")
    poisoned(monkeypatch, 6)
    with Training(config(), tmp_path / "t") as training, pytest.raises(NumericalError) as caught:
        training.run(lambda line: None)
    assert same(before.model.state_dict(), training.model.state_dict())
    words = "loss nan and gradient norm nan at step 6, pictures 51; first NaN or Inf comes out of "
    assert f"{words}x_embedder.proj; largest activations: x_embedder.proj nan" in str(caught.value)
    failure = json.loads((tmp_path / "t" / "failure.json").read_text())
    assert (failure["step"], failure["pictures"]) == (6, [51])
    found, _ = newest_checkpoint(tmp_path / "t")
    assert found is not None and found.step == 6
    assert same(found.model, before.model.state_dict())


def test_an_overflow_names_the_module(tmp_path: Path) -> None:
    with Training(config(precision="fp32"), tmp_path / "t") as training:
        with torch.no_grad():
            training.model.blocks[1].mlp.fc1.weight.mul_(1e30)
            training.model.blocks[1].mlp.fc2.weight.mul_(1e30)
        with pytest.raises(NumericalError, match=r"comes out of blocks\.1\.mlp\.fc2;"):
            training.run(lambda line: None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    poisoned(monkeypatch, 2, 6)
    settings = config(precision=precision, max_skipped=2, log_every=1)
    told: list[str] = []
    with Training(settings, tmp_path / "t") as training:
        training.run(lambda line: None, told.append)
    assert (training.step, training.skipped, training.pictures) == (12, 2, 80)
    assert len(told) == 2 and told[0].startswith("skipped: loss nan")
    lines = [json.loads(line) for line in (tmp_path / "t" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("event") == "skipped"] == [3, 7]
    assert [line["step"] for line in lines if line.get("loss", 0) is None] == [3, 7]
    assert all(torch.isfinite(value).all() for value in training.ema.state_dict().values())
    # The count survives a stop, and the limit holds over the whole training.
    with Training(settings.model_copy(update={"steps": 4}), tmp_path / "u") as training:
        training.run(lambda line: None, told.append)
    limited = settings.model_copy(update={"max_skipped": 1})
    with Training(limited, tmp_path / "u") as training:
        assert training.skipped == 1
        with pytest.raises(NumericalError, match=r"step 6.*\(1 skipped before\)"):
            training.run(lambda line: None, told.append)


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    for name in ("file", "mine"):
        with pytest.raises(ResourceError, match=name):
            Training(config(), tmp_path / name)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_log_line_that_was_cut_short_goes(tmp_path: Path) -> None:
    run(config(), tmp_path / "t")
    log = tmp_path / "t" / "log.jsonl"
    before = log.read_bytes()
    log.write_bytes(before + b'{"step": 13}\n{"st')
    run(config(), tmp_path / "t")
    assert log.read_bytes() == before
