"""Every recorded run carries its proof, and a slow disk slows the sampling that makes it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from ditscope.pipeline import load
from ditscope.runs.background import Background
from ditscope.runs.reader import Run, open_run
from ditscope.runs.writer import RunWriter
from ditscope.sampling.draw import sample

LIMITS = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


@pytest.mark.parametrize("dtype", LIMITS)
def test_every_step_is_proven(flow_folder: Path, tmp_path: Path, dtype: str) -> None:
    pipe = load(flow_folder, dtype=dtype)  # type: ignore[arg-type]
    settings = {"batch_size": 2, "steps": 4, "qk_steps": (1,)}
    run = sample(pipe, ["ant", "bee", "cat"], record=tmp_path / "run", **settings)
    assert isinstance(run, Run)
    found = run.proof["output"]
    assert np.isfinite(found.sel(step=1)).all()
    for step in (0, 2, 3):  # one site, one row of each of two batches, both heads
        proven = np.isfinite(found.sel(step=step)).values
        assert proven.sum() == 2 * 2 and proven[:, :, step % 3].sum() == proven.sum()
        assert len(run.manifest.steps[step].proven_queries) == 4
    checked = run.verify()
    assert checked.ok, checked.problems
    for name, limit in (("row_sum", 1e-5), ("output", LIMITS[dtype])):
        assert 0 < run.proof[name].max() < limit
        largest = run.proof[name].sel(step=1).max().item()
        assert checked.proof[name] == pytest.approx(largest, abs=1e-6)


def test_statistics_of_another_call_are_noticed(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the scale read wrongly, rows would still sum to one, but not give the output."""
    pipe = load(flow_folder, dtype="float32")
    monkeypatch.setattr("ditscope.attention.seam.AttentionCall.softmax_scale", 0.5)
    run = sample(pipe, ["ant"], record=tmp_path / "run", steps=2)
    assert isinstance(run, Run)
    assert any("rebuilt P V against the output" in each for each in run.verify().problems)


def test_a_slow_disk_slows_the_sampling_down(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes one file each time the sampling stands still, and memory stays bounded."""
    limit, most, put = 30_000, [], RunWriter._put
    drawing = threading.Event()

    class Bounded(Background):
        def __init__(self) -> None:
            super().__init__(limit)

        def submit(self, nbytes: int, work: object) -> None:
            super().submit(nbytes, work)  # type: ignore[arg-type]
            most.append(self.queued_bytes)
            drawing.set()

    def slow(self: RunWriter, name: str, data: bytes) -> None:
        drawing.wait(0.02)
        drawing.clear()
        put(self, name, data)

    monkeypatch.setattr("ditscope.sampling.recorder.Background", Bounded)
    monkeypatch.setattr(RunWriter, "_put", slow)
    pipe = load(flow_folder, dtype="float32")
    steps = 6
    sample(pipe, ["ant"], record=tmp_path / "run", steps=steps, qk_steps=tuple(range(steps)))
    run = open_run(tmp_path / "run")
    assert run.verify().ok
    all_bytes = sum(array.nbytes for array in run.layout.arrays)
    assert all_bytes > 3 * limit and max(most) <= limit
