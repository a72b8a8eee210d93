"""Where a training computes: what may be asked for, and that all tensors get there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ditscope.cli.train import described
from ditscope.distributed.group import STARTED, joined, processes_here
from ditscope.errors import BadRequest, ResourceError
from ditscope.train.checkpoint import Checkpoint, newest_checkpoint
from ditscope.train.journal import Journal
from ditscope.train.placing import device_kind, one_device, shared_kind
from tests.train.elsewhere import CASES
from tests.train.tiny import same

ROOT = Path(__file__).parents[2]
ROUNDING = 1e-4
"""AdamW takes steps of 3e-3 also where a gradient is nothing but rounding (biases of keys)."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings of `elsewhere.main`, in a process of their own."""
    base = tmp_path_factory.mktemp("elsewhere")
    subprocess.run(
        [sys.executable, "-m", "tests.train.elsewhere", str(base)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=True,
    )
    return base


def ended(folder: Path) -> Checkpoint:
    found, damaged = newest_checkpoint(folder)
    assert found is not None and damaged == []
    return found


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", list(CASES))
def test_a_second_device_trains_on_the_same_numbers(trained: Path, name: str) -> None:
    """No step mixes tensors of two devices; losses are those of the CPU but for rounding."""
    here, away = trained / name / "here", trained / name / "away"
    told = {"step": 0, "event": "device", "kind": "elsewhere", "name": "elsewhere"}
    assert told in lines(away) and "event" not in lines(here)[0]
    mine, theirs = (
        torch.tensor([line["loss"] for line in lines(folder) if "loss" in line])
        for folder in (here, away)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-6 if name == "flow" else 1e-4, atol=0)
    for part in ("model", "ema", "optimizer"):
        ours, others = getattr(ended(here), part), getattr(ended(away), part)
        assert ours.keys() == others.keys()
        if name == "flow" and part != "optimizer":
            torch.testing.assert_close(ours, others, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", list(CASES))
def test_it_goes_on_exactly_there_and_nearly_elsewhere(trained: Path, name: str) -> None:
    away, twice = ended(trained / name / "away"), ended(trained / name / "twice")
    assert all(same(getattr(away, part), getattr(twice, part)) for part in ("model", "ema"))
    assert same(away.optimizer, twice.optimizer)
    if name == "flow":
        back = ended(trained / "back")
        assert back.step == 12
        torch.testing.assert_close(back.model, away.model, rtol=0, atol=ROUNDING)


def test_pictures_of_the_averaged_weights_are_drawn_there(trained: Path) -> None:
    here, away = (trained / "flow" / place / "previews" for place in ("here", "away"))
    names = sorted(path.name for path in here.iterdir())
    assert names == ["0000006.png", "0000012.png"]
    assert names == sorted(path.name for path in away.iterdir())


def test_a_report_tells_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30 // 2)
    for device, told in (("cuda:1", "GiB, GPU 1.5 GiB"), ("cpu", "GiB")):
        journal = Journal(None, 0, (), device=torch.device(device))
        journal.add(0.5, 8)
        line = journal.report(1, 8, gradient_norm=1.0, stage="fine", learning_rate=1e-4)
        assert line.peak_gpu_gib == (1.5 if device == "cuda:1" else None)
        assert described(line).endswith(told) and ("GPU" in described(line)) == ("GPU" in told)


def test_auto_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert one_device() == torch.device("cpu") and shared_kind("auto", 3) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert one_device() == torch.device("cuda:0") and device_kind("cpu") == "cpu"
    assert one_device("cuda:1") == torch.device("cuda:1")
    assert shared_kind("auto", 2) == "cuda" and shared_kind("cpu", 3) == "cpu"


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ("gpu", BadRequest, "device: found gpu"),
        ("meta", BadRequest, "device: found meta; expected auto, cpu, cuda"),
        ("cuda:7", ResourceError, "device: found cuda:7; expected cuda:0 to cuda:1"),
    ],
)
def test_devices_that_are_none(monkeypatch, asked: str, error, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(error, match=message):
        one_device(asked)


def test_several_processes_have_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ResourceError, match=r"3 processes asked for, 2 GPUs here\s+--processes 2"):
        shared_kind("auto", 3)
    with pytest.raises(BadRequest, match="no number: each process has its own"):
        shared_kind("cuda:1", 2)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="there is no CUDA device"):
        one_device("cuda")


def test_processes_on_gpus_sum_through_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the group is asked for; there is no GPU to form it on."""
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **_: asked.append(name))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for name, value in zip(STARTED, ("3", "4", "1", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with joined(sums_on="cuda") as group:
        assert (group.rank, group.size, group.local_rank) == (3, 4, 1)
    assert asked == [1, "cpu:gloo,cuda:nccl"]
    with joined():
        assert asked[2:] == ["gloo"]
    assert processes_here() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert processes_here() == 2
