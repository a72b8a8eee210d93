"""Attention of a recorded run against softmax written out in float64, stored and replayed."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ditscope.core.axes import BRANCHES
from ditscope.errors import BadCheckpoint
from ditscope.pipeline import Pipeline, load
from ditscope.runs.reader import Run
from ditscope.sampling.draw import sample
from tests.sampling.conftest import write_pipeline

LABELS = ["ant", "bee", "cat"]


def attention_matrices(pipe: Pipeline, run: Run, step: int, samples: list[int]) -> np.ndarray:
    """(branch, sample, layer, head, query, key) float64, from a plain forward's projections."""
    seen = []
    hooks = [
        block.attn.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
        for block in pipe.model.blocks
    ]
    latent = torch.from_numpy(run.latents.isel(step=step, sample=samples).values)
    labels = [run.manifest.labels[index].index for index in samples]
    y = torch.tensor(labels + [pipe.model.config.null_label] * len(samples))
    pipe.network(latent.repeat(2, 1, 1, 1), run.manifest.steps[step].timestep, y)
    for hook in hooks:
        hook.remove()
    heads = pipe.model.config.num_heads
    maps = []
    for qkv in seen:
        rows, tokens, _ = qkv.shape
        q, k, _ = qkv.double().view(rows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        maps.append((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1))
    stacked = torch.stack(maps, dim=1)  # (rows, layer, head, query, key)
    return stacked.view(2, len(samples), *stacked.shape[1:]).detach().numpy()


def recorded(folder: Path, path: Path, dtype: str, **settings: object) -> tuple[Pipeline, Run]:
    pipe = load(folder, dtype=dtype)
    run = sample(pipe, LABELS, record=path, steps=4, batch_size=2, **settings)
    assert isinstance(run, Run)
    return pipe, run


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-5)])
def test_maps_are_exact(folder: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    pipe, run = recorded(folder, tmp_path / "run", dtype, qk_steps=(1,))
    for step, source in ((1, "stored"), (2, "replayed")):
        expected = attention_matrices(pipe, run, step, [0, 1])
        for branch in BRANCHES:
            for layer in range(3):
                found = run.attention(layer, 1, step, (2, 3), sample=1, branch=branch)
                assert found.attrs["source"] == source
                row = expected[BRANCHES.index(branch), 1, layer, 1, 2 * 6 + 3].reshape(4, 6)
                np.testing.assert_allclose(found.values, row, rtol=0, atol=tolerance)
                mean = run.attention(layer, "mean", step, (0, 0), sample=0, branch=branch)
                row = expected[BRANCHES.index(branch), 0, layer, :, 0].mean(0).reshape(4, 6)
                np.testing.assert_allclose(mean.values, row, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", {"rms_distance": 2e-2})]
)
def test_statistics_are_those_of_the_maps(
    folder: Path, tmp_path: Path, dtype: str, tolerance: float | dict[str, float]
) -> None:
    pipe, run = recorded(folder, tmp_path / "run", dtype)
    patches = np.stack(np.divmod(np.arange(24), 6), axis=1).astype(float)
    squares = ((patches[:, None] - patches[None]) ** 2).sum(-1)
    for step in range(4):
        p = attention_matrices(pipe, run, step, [0, 1])
        expected = {
            "entropy": -(p * np.log(p)).sum(-1).mean(-1),
            "rms_distance": np.sqrt((p * squares).sum(-1).mean(-1)),
            "received_max": p.mean(-2).max(-1),
        }
        for name, reference in expected.items():
            found = run.stats[name].isel(step=step, sample=[0, 1]).values
            allowed = tolerance if isinstance(tolerance, float) else tolerance.get(name, 5e-3)
            np.testing.assert_allclose(found, reference, rtol=0, atol=allowed, err_msg=name)


def test_other_weights_are_refused(flow_folder: Path, tmp_path: Path) -> None:
    _, run = recorded(flow_folder, tmp_path / "run", "float32")
    shutil.rmtree(flow_folder)
    write_pipeline(flow_folder, "flow", seed=1)
    with pytest.raises(BadCheckpoint, match="not those the run was computed with"):
        run.attention(0, 0, 0, (0, 0))


def test_weights_changed_in_memory_are_noticed(flow_folder: Path, tmp_path: Path) -> None:
    """The file is as it was, the network that drew was not: a replay would be another network's."""
    pipe = load(flow_folder, dtype="float32")
    with torch.no_grad():
        for parameter in pipe.model.parameters():
            parameter.mul_(1.5)
    converted = load(flow_folder, dtype="bfloat16").to(dtype="float32")
    for index, each in enumerate((pipe, converted)):
        run = sample(each, ["ant"], record=tmp_path / str(index), steps=2, qk_steps=(0,))
        assert isinstance(run, Run)
        assert run.attention(0, 0, 0, (0, 0)).attrs["source"] == "stored"
        with pytest.raises(BadCheckpoint, match="not those the run was computed with"):
            run.attention(0, 0, 1, (0, 0))


def test_runs_of_the_same_name_and_second_are_told_apart(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr("ditscope.sampling.recorder.datetime.datetime", Clock)
    found = []
    for seed in (0, 1, 0):
        _, run = recorded(flow_folder, tmp_path / "run", "float32", seed=seed, overwrite=True)
        assert run.manifest.created == "2026-01-01T00:00:00+00:00"
        found.append(run.attention(1, 0, 2, (0, 0)).values)
    assert not np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
