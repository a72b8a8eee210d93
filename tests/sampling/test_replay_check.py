"""A replay says whether it gave the recorded bits: of one step, and of a whole run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ditscope.diffusion.sampler import SAMPLERS
from ditscope.errors import BadRun
from ditscope.pipeline import Pipeline, load
from ditscope.runs.reader import Run, open_run
from ditscope.runs.repair import repair_run
from ditscope.sampling import replay
from ditscope.sampling.draw import sample
from tests.runs.damage import edit_manifest
from tests.sampling.conftest import PROCESSES, write_pipeline

FITTING = [
    (kind, name)
    for kind in sorted(PROCESSES)
    for name, known in SAMPLERS.items()
    if kind in known.kinds
]


@pytest.fixture(autouse=True)
def _forget() -> None:
    replay._forwards.clear()


def recorded(folder: Path, path: Path, **settings: object) -> Run:
    run = sample(
        load(folder, dtype="float32"),
        ["ant", "bee", "cat"],
        record=path,
        **{"steps": 4, "batch_size": 2, **settings},
    )
    assert isinstance(run, Run)
    return run


def change_outputs(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let the network return `factor` times what it returned, as another machine might."""
    network = Pipeline.network
    monkeypatch.setattr(Pipeline, "network", lambda *given: factor * network(*given))


@pytest.mark.parametrize(("kind", "name"), FITTING)
def test_every_sampler_is_repeated_bit_for_bit(tmp_path: Path, kind: str, name: str) -> None:
    run = recorded(write_pipeline(tmp_path / "pipeline", kind), tmp_path / "run", sampler=name)
    found = run.verify(replay=True)
    assert found.ok and found.replayed and found.replayed.exact and not found.replayed.difference
    assert str(found.replayed) == f"{len(run.steps)} of {len(run.steps)} steps bit for bit"
    row = run.attention(1, 0, len(run.steps) - 1, (0, 0), sample=2)
    assert row.attrs["source"] == "replayed" and row.attrs["verified"] == "bit for bit"
    assert row.attrs["replay_difference"] == 0


def test_guidance_edits_and_noise_are_repeated(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipeline", "ddpm")
    edits = [{"kind": "temperature", "temperature": 1.5, "layers": [1]}]
    run = recorded(
        folder,
        tmp_path / "run",
        sampler="ddim",
        eta=0.7,
        cfg_channels=2,
        cfg_interval=(0.3, 0.9),
        clip_denoised=True,
        edits=edits,
    )
    assert {len(step.branches) for step in run.steps} == {1, 2}
    found = run.verify(replay=True).replayed
    assert found and found.exact and found.problem is None


def test_another_machine_is_reported_with_its_difference(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(flow_folder, tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda tree: tree.update(machine="another CPU"))
    change_outputs(monkeypatch, 1 + 1e-5)
    run = open_run(tmp_path / "run")
    row = run.attention(0, 0, 2, (0, 0))
    assert 0 < row.attrs["replay_difference"] < 1e-3
    assert row.attrs["verified"].startswith("within ")
    assert "recorded on another CPU, now on " in row.attrs["verified"]
    found = run.verify(replay=True)
    assert found.ok and found.replayed and not found.replayed.exact
    assert 0 < found.replayed.difference < 1e-2 and "another CPU" in str(found.replayed)


def test_what_is_no_rounding_is_an_error(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recorded(flow_folder, tmp_path / "run")
    change_outputs(monkeypatch, 1.5)
    with pytest.raises(BadRun, match=r"step 1 is not what was recorded: .* which is no rounding"):
        run.attention(0, 0, 1, (0, 0))
    found = run.verify(replay=True)
    assert not found.ok and "after step 0" in found.problems[0]


def test_another_label_or_seed_is_noticed(flow_folder: Path, tmp_path: Path) -> None:
    recorded(flow_folder, tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda tree: tree["labels"][0].update(index=4))
    with pytest.raises(BadRun, match="is not what was recorded"):
        open_run(tmp_path / "run").attention(0, 0, 1, (0, 0))
    edit_manifest(tmp_path / "run", lambda tree: tree["labels"][0].update(index=0))
    edit_manifest(tmp_path / "run", lambda tree: tree["sample_seeds"].reverse())
    problems = open_run(tmp_path / "run").verify(replay=True).problems
    assert len(problems) == 1 and "not the noise of its seeds" in problems[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: tree["sampler"].update(name="no sampler"),
            "sampler: 'no sampler' is unknown",
        ),
        (lambda tree: tree["sampler"].update(options={"eta": "x"}), "sampler.options: have a type"),
        (lambda tree: tree["steps"][1].update(timestep=3.0), "steps: are not those of its sampler"),
    ],
)
def test_a_sampler_that_does_not_fit(flow_folder: Path, tmp_path: Path, change, message) -> None:
    recorded(flow_folder, tmp_path / "run")
    edit_manifest(tmp_path / "run", change)
    with pytest.raises(BadRun, match=message):
        open_run(tmp_path / "run").verify(replay=True)


def test_runs_that_kept_no_outputs(flow_folder: Path, tmp_path: Path) -> None:
    """Such as those of an older version: their latents are still compared."""
    recorded(flow_folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/data.zarr/outputs")

    def older(tree):
        del tree["output_numbers"], tree["machine"]
        for name in [name for name in tree["files"] if "/outputs/" in name]:
            del tree["files"][name]

    edit_manifest(tmp_path / "run", older)
    run = open_run(tmp_path / "run")
    assert run.attention(0, 0, 1, (0, 0)).attrs["verified"].startswith("not checked: ")
    found = run.verify(replay=True).replayed
    assert found and found.exact


def test_a_partial_run_and_one_with_losses(flow_folder: Path, tmp_path: Path) -> None:
    recorded(flow_folder, tmp_path / "run")
    next((tmp_path / "run/data.zarr/outputs").glob("c.2.*")).unlink()
    repair_run(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.attention(0, 0, 2, (0, 0)).attrs["verified"].startswith("not checked")
    found = run.verify(replay=True).replayed
    assert found and found.exact and found.steps == 4
    next((tmp_path / "run/data.zarr/latents").glob("c.1.*")).unlink()
    repair_run(tmp_path / "run")
    with pytest.raises(BadRun, match="was lost before the run was repaired"):
        open_run(tmp_path / "run").verify(replay=True)


def test_one_forward_serves_all_layers_and_samples_of_a_batch(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(flow_folder, tmp_path / "run")
    run, calls, network = open_run(tmp_path / "run", cache_bytes=0), [], Pipeline.network
    monkeypatch.setattr(
        Pipeline, "network", lambda *given: (calls.append(len(given[1])), network(*given))[1]
    )
    run.attention("mean", "mean", 1, "mean", sample="all", branch="all")
    assert calls == [4, 2]  # both branches of two samples, then of one
    monkeypatch.setattr(replay, "KEPT_BYTES", 1)
    replay._forwards.clear()
    run = open_run(tmp_path / "run", cache_bytes=0)
    run.attention(0, 0, 1, 0, sample=0)
    assert len(calls) == 3 and len(replay._forwards) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_maps_are_the_replayed_ones_without_torch(
    flow_folder: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample(load(flow_folder, dtype=dtype), ["ant", "bee"], record=tmp_path / "run", steps=2)
    assert isinstance(run, Run)
    first = run.attention(1, "all", 1, (1, 2), sample="all", branch="all")
    again = open_run(tmp_path / "run")
    monkeypatch.setattr("ditscope.runs.replay._loaded", lambda *given: pytest.fail("replayed"))
    cached = again.attention(1, "all", 1, (1, 2), sample="all", branch="all")
    assert np.array_equal(cached, first) and cached.attrs == first.attrs
    assert again.verify().ok and torch.is_tensor(torch.zeros(1))
