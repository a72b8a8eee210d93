"""Sampling: recorded and unrecorded, alone and in company, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ditscope.diffusion.sampler import SAMPLERS
from ditscope.errors import BadRequest, NothingWatched, NumericalError, ResourceError
from ditscope.pipeline import Pipeline, load
from ditscope.runs.reader import Run, open_run
from ditscope.sampling.draw import Samples, record_job, sample
from ditscope.sampling.job import make_job


def draw(pipe: Pipeline, labels: list[str], **settings: object) -> Samples:
    drawn = sample(pipe, labels, **settings)
    assert isinstance(drawn, Samples)
    return drawn


def record(pipe: Pipeline, labels: list[str], path: Path, **settings: object) -> Run:
    run = sample(pipe, labels, record=path, **settings)
    assert isinstance(run, Run)
    return run


def fitting(pipe: Pipeline) -> list[str]:
    return [name for name, each in SAMPLERS.items() if pipe.process.kind in each.kinds]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recording_changes_nothing(folder: Path, tmp_path: Path, dtype: str) -> None:
    pipe = load(folder, dtype=dtype)
    for name in fitting(pipe):
        settings = {"sampler": name, "steps": 4, "seed": 3, "batch_size": 2}
        plain = draw(pipe, ["ant", "bee", "cat"], **settings)
        run = record(pipe, ["ant", "bee", "cat"], tmp_path / f"{name}", qk_steps=(0, 2), **settings)
        assert np.array_equal(run.final.values, plain.final.numpy()), name
        assert np.array_equal(run.images.values, plain.images), name
        assert run.verify().ok


def test_noise_belongs_to_the_sample(folder: Path, tmp_path: Path) -> None:
    pipe = load(folder, dtype="float32")
    names = ["ant", "bee", "cat", "dog", "eel"]
    together = record(pipe, names, tmp_path / "together", seed=5, batch_size=5)
    apart = record(pipe, names, tmp_path / "apart", seed=5, batch_size=2)
    assert np.array_equal(together.latents[0].values, apart.latents[0].values)
    size = np.abs(together.final.values).max()  # an untrained network may draw large numbers
    np.testing.assert_allclose(
        together.final.values, apart.final.values, rtol=0, atol=1e-6 * max(size, 200)
    )
    assert together.manifest.sample_seeds == apart.manifest.sample_seeds
    assert len({each.tobytes() for each in together.latents[0].values}) == len(names)
    other = record(pipe, names[:1], tmp_path / "other", seed=6)
    assert not np.array_equal(other.latents[0, 0].values, together.latents[0, 0].values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_is_drawn_as_if_it_were_alone(folder: Path, tmp_path: Path, dtype: str) -> None:
    """Bit for bit, with every sampler: what else is drawn, or where, changes nothing."""
    pipe = load(folder, dtype=dtype)
    for name in fitting(pipe):
        settings = {"sampler": name, "steps": 4, "seed": 3, "batch_size": 2, "metrics": ()}
        settings |= {"eta": 0.5} if name == "ddim" else {}
        job = make_job(pipe, ["ant", "bee", "cat", "dog", "eel"], settings)
        whole = draw(pipe, ["ant", "bee", "cat", "dog", "eel"], **settings)
        assert [len(batch) for batch in job.batches] == [2, 2, 1]
        for index, batch in enumerate(job.batches):
            part = job.part(batch)
            assert part.sample_seeds == job.sample_seeds[batch[0] : batch[-1] + 1]
            alone = record_job(part, tmp_path / f"{name}-{index}")
            assert np.array_equal(alone.final, whole.final[list(batch)]), (name, index)
            assert np.array_equal(alone.images, whole.images[list(batch)]), (name, index)


def test_qk_steps_are_spread_from_first_to_last(flow_folder: Path) -> None:
    job = make_job(load(flow_folder), ["ant"], {"steps": 9})
    spread = [job.keeping_qk(count).settings.qk_steps for count in (0, 1, 2, 3, 9)]
    assert spread == [(), (0,), (0, 8), (0, 4, 8), tuple(range(9))]
    for count in (-1, 10):
        with pytest.raises(BadRequest, match=f"qk-steps: found {count}; expected 0 to 9"):
            job.keeping_qk(count)


def test_run_says_how_it_was_made(folder: Path, tmp_path: Path) -> None:
    pipe = load(folder, dtype="float32")
    run = record(pipe, ["dog", "DOG", "1"], tmp_path / "run", cfg_interval=(0.5, 0.99), seed=9)
    manifest = run.manifest
    assert [label.name for label in manifest.labels] == ["dog", "dog", "bee"]
    assert manifest.guidance.scale == 2.0
    assert manifest.guidance.interval == (0.5, 0.99)
    assert manifest.seed == 9
    assert [site.name for site in manifest.sites] == [f"blocks.{i}.attn" for i in range(3)]
    assert {(site.grid.height, site.grid.width) for site in manifest.sites if site.grid} == {(4, 6)}
    for step in manifest.steps:
        guided = 0.5 <= step.noise_level <= 0.99
        assert step.branches == (("cond", "uncond") if guided else ("cond",))
        uncond = run.stats["entropy"].sel(branch="uncond").isel(step=step.index).values
        assert np.isnan(uncond).all() != guided
    assert np.isfinite(run.stats["entropy"].sel(branch="cond").values).all()


def test_heun_records_both_evaluations(flow_folder: Path, tmp_path: Path) -> None:
    run = record(load(flow_folder), ["ant"], tmp_path / "run", sampler="heun", steps=3)
    assert [(s.solver_step, s.evaluation) for s in run.steps] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
    ]


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        (["cow"], {}, "cow"),
        (["ant"], {"stepz": 3}, "did you mean 'steps'"),
        (["ant"], {"steps": 0}, "steps"),
        (["ant"], {"cfg_scale": float("nan")}, "cfg_scale"),
        (["ant"], {"cfg_channels": 4}, "cfg_channels"),
        (["ant"], {"cfg_interval": (0.9, 0.1)}, "cfg_interval"),
        (["ant"], {"metrics": ("entropie",)}, "did you mean entropy"),
        (["ant"], {"qk_steps": (4,)}, "qk_steps"),
        (["ant"], {"sampler": "ddpm"}, "sampler"),
        (["ant"], {"steps": True}, "steps"),
        (["ant"], {"seed": True}, "seed"),
        (["ant"], {"batch_size": True}, "batch_size"),
        (["ant"], {"qk_steps": (True,)}, "qk_steps"),
        ([True], {}, "class"),
        ([], {}, "labels"),
        ("ant", {}, "labels"),
    ],
)
def test_bad_requests_write_nothing(
    flow_folder: Path, tmp_path: Path, labels: list[str], settings: dict[str, object], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        sample(load(flow_folder), labels, record=tmp_path / "run", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow"]


def test_a_run_is_not_replaced_unasked(flow_folder: Path, tmp_path: Path) -> None:
    pipe = load(flow_folder)
    first = record(pipe, ["ant"], tmp_path / "run")
    with pytest.raises(ResourceError, match="already holds a run"):
        sample(pipe, ["bee"], record=tmp_path / "run")
    second = record(pipe, ["bee"], tmp_path / "run", overwrite=True)
    assert first.manifest.labels != second.manifest.labels


def test_an_interrupted_run_keeps_its_whole_steps(flow_folder: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(load(flow_folder), ["ant"], record=tmp_path / "run", report=stop)
    partial = open_run(tmp_path / "run", allow_partial=True)
    assert not partial.complete
    assert len(partial.steps) == 2
    assert np.isfinite(partial.stats["entropy"].values).all()


def test_numbers_that_are_not_finite_stop_the_run(flow_folder: Path, tmp_path: Path) -> None:
    pipe = load(flow_folder)
    with torch.no_grad():
        pipe.model.final_layer.linear.bias[0] = float("inf")
    with pytest.raises(NumericalError, match="step 0"):
        sample(pipe, ["ant"], record=tmp_path / "run")


def test_a_site_that_does_not_fire_is_an_error(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = load(flow_folder)
    skipped = pipe.model.blocks[1].attn
    calls = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x if len(calls) > 1 else type(skipped).forward(skipped, x)

    monkeypatch.setattr(skipped, "forward", forward)
    with pytest.raises(NothingWatched, match="2 attention calls, the census expects 3"):
        sample(pipe, ["ant"], record=tmp_path / "run")


def test_stored_attention_of_several_batches_is_that_of_each(
    flow_folder: Path, tmp_path: Path
) -> None:
    """Five samples in batches of two: every chunk is written as soon as its batch has passed."""
    pipe = load(flow_folder, dtype="float32")
    names = ["ant", "bee", "cat", "dog", "eel"]
    run = record(pipe, names, tmp_path / "run", batch_size=2, qk_steps=(1,), steps=2)
    assert run.verify().ok
    alone = record(pipe, names, tmp_path / "alone", batch_size=1, qk_steps=(1,), steps=2)
    for index in range(5):
        place = {"layer": 2, "head": 1, "step": 1, "query": (1, 2), "sample": index}
        found, expected = run.attention(**place), alone.attention(**place)
        np.testing.assert_allclose(found.values, expected.values, atol=1e-4)
        assert found.attrs["source"] == "stored"
