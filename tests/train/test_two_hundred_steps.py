"""A whole training, small: it learns what there is to learn, and a stop leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditscope.train.batches import Batch, batch
from ditscope.train.checkpoint import newest_checkpoint
from ditscope.train.config import TrainConfig
from ditscope.train.request import Request, resolve
from ditscope.train.sources import Source
from tests.train.tiny import run, same

STEPS = 200
NETWORK = "hidden_size = 48\ndepth = 2\nnum_heads = 2\npatch_size = 4\n"


def settings(folder: Path) -> TrainConfig:
    (folder / "net.toml").write_text(NETWORK)
    found, _ = resolve(
        Request(
            model=str(folder / "net.toml"),
            image_size="16",
            single={"steps": STEPS, "batch_size": 16, "learning_rate": 2e-3},
            settings=["warmup_steps=10", "save_every=55", "log_every=20", "accumulate=2"],
        )
    )
    return found


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


class PowerCut(Exception):
    pass


def test_it_learns_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings(tmp_path)
    whole, lines = run(asked, tmp_path / "whole")
    assert lines[0].loss is not None and lines[-1].loss is not None
    assert lines[-1].loss < 0.7 * lines[0].loss
    assert [line.step for line in lines] == list(range(20, STEPS + 1, 20))

    def cut(config: TrainConfig, source: Source, step: int, rows: range) -> Batch:
        if step == 130:
            raise PowerCut
        return batch(config, source, step, rows)

    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        patched.setattr("ditscope.train.batches.batch", cut)
        run(asked, tmp_path / "parts")
    found, _ = newest_checkpoint(tmp_path / "parts")
    assert found is not None and (found.step, len(found.losses)) == (110, 10)
    parts, _ = run(asked, tmp_path / "parts")
    assert same(whole.model.state_dict(), parts.model.state_dict())
    assert same(whole.ema.state_dict(), parts.ema.state_dict())
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
