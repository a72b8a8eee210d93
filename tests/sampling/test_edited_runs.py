"""Runs with edits: drawn and recorded as edited, and repeated from what the manifest says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ditscope as ds
from ditscope.attention.edits.kinds import edits_of
from ditscope.core.axes import BRANCHES
from ditscope.errors import BadRequest, BadRun
from ditscope.pipeline import Pipeline, load
from ditscope.runs.layout import COMPLETE, MANIFEST, seal_of
from ditscope.runs.reader import Run, open_run
from ditscope.sampling.draw import Samples, sample
from ditscope.sampling.replay import replay_step

LABELS = ["ant", "bee", "cat"]
EDITS = (
    ds.Temperature(1.3, layers=[0, 2], steps=[1, 2]),
    ds.Temperature(2.0, layers=1, heads=1),
    ds.AblateHeads(layers=0, heads=0, steps=range(1, 4)),
)


def draw(pipe: Pipeline, **settings: object) -> Samples:
    drawn = sample(pipe, LABELS, **settings)
    assert isinstance(drawn, Samples)
    return drawn


def record(pipe: Pipeline, path: Path, **settings: object) -> Run:
    run = sample(pipe, LABELS, record=path, batch_size=2, **settings)
    assert isinstance(run, Run)
    return run


def maps_by_hand(pipe: Pipeline, run: Run, step: int) -> np.ndarray:
    """(branch, sample, layer, head, query, key) float64 of the first batch, from projections."""
    seen = []

    def project(module: object, args: object, output: torch.Tensor) -> None:
        seen.append(output)

    hooks = [block.attn.qkv.register_forward_hook(project) for block in pipe.model.blocks]
    latent = torch.from_numpy(run.latents.isel(step=step, sample=[0, 1]).values)
    labels = [run.manifest.labels[index].index for index in (0, 1)]
    y = torch.tensor(labels + [pipe.model.config.null_label] * 2)
    here = [edit for edit in EDITS if edit.steps is None or step in edit.steps]
    with ds.edit(pipe.model, *(edit.model_copy(update={"steps": None}) for edit in here)):
        pipe.network(latent.repeat(2, 1, 1, 1), run.manifest.steps[step].timestep, y)
    for hook in hooks:
        hook.remove()
    layers = []
    for layer, qkv in enumerate(seen):
        q, k, _ = qkv.double().view(4, 24, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        temperature = torch.ones(2, 1, 1, dtype=torch.double)
        if layer in (0, 2) and step in (1, 2):
            temperature *= 1.3
        if layer == 1:
            temperature[1] *= 2.0
        layers.append((q @ k.mT / 12**0.5 / temperature).softmax(-1))
    maps = torch.stack(layers, dim=1)
    return maps.view(2, 2, *maps.shape[1:]).detach().numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neutral_edits_change_no_bit(folder: Path, dtype: str) -> None:
    pipe = load(folder, dtype=dtype)
    plain = draw(pipe, seed=3)
    neutral = (ds.Temperature(1.0), ds.AblateHeads(heads=()))
    assert torch.equal(plain.final, draw(pipe, seed=3, edits=neutral).final)
    edited = draw(pipe, seed=3, edits=[*neutral, ds.Temperature(1.3)])
    assert not torch.equal(plain.final, edited.final)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_maps_and_statistics_are_the_edited_ones(folder: Path, tmp_path: Path, dtype: str) -> None:
    """Stored and replayed, where the temperature is in the scale and where it is in the queries."""
    pipe = load(folder, dtype=dtype)
    run = record(pipe, tmp_path / "run", edits=EDITS, qk_steps=(1, 3))
    assert run.verify().ok
    for step, source in enumerate(("replayed", "stored", "replayed", "stored")):
        expected = maps_by_hand(pipe, run, step)
        for branch in BRANCHES:
            for layer in range(3):
                for head in range(2):
                    found = run.attention(layer, head, step, (2, 3), sample=1, branch=branch)
                    assert found.attrs["source"] == source
                    row = expected[BRANCHES.index(branch), 1, layer, head, 15].reshape(4, 6)
                    allowed = 1e-2 if dtype == "bfloat16" and (layer, head) == (1, 1) else 1e-5
                    np.testing.assert_allclose(found.values, row, rtol=0, atol=allowed)
        entropy = -(expected * np.log(expected)).sum(-1).mean(-1)
        found = run.stats["entropy"].isel(step=step, sample=[0, 1]).values
        np.testing.assert_allclose(found, entropy, rtol=0, atol=2e-2)


def test_stored_and_replayed_operands_are_the_same(folder: Path, tmp_path: Path) -> None:
    pipe = load(folder, dtype="bfloat16")
    run = record(pipe, tmp_path / "run", edits=EDITS, qk_steps=(0, 1, 2, 3))
    for step in range(4):
        for layer in range(3):
            stored = run._load(step, "uncond", 2, layer)[step, "uncond", 2, layer]
            again = replay_step(run, step, 2)[step, "uncond", 2, layer]
            assert again.agreement is not None and again.agreement.exact
            assert again.numbers == stored.numbers == "bfloat16"
            assert np.array_equal(stored.q, again.q)
            assert np.array_equal(stored.k, again.k)
            np.testing.assert_allclose(stored.lse, again.lse, rtol=0, atol=1e-5)
            assert stored.scale == again.scale
    assert [step.scales is None for step in run.manifest.steps] == [False] * 4
    assert run.manifest.steps[1].scales == pytest.approx([12**-0.5 / 1.3, 12**-0.5, 12**-0.5 / 1.3])


def test_a_run_can_be_drawn_again_from_its_manifest(folder: Path, tmp_path: Path) -> None:
    """Every latent that is drawn again is the stored one, bit for bit; unedited it is not."""
    run = open_run(record(load(folder), tmp_path / "run", edits=EDITS, seed=7).path)
    manifest = run.manifest
    settings: dict[str, object] = {
        "seed": manifest.seed,
        "steps": manifest.sampler.steps,
        "sampler": manifest.sampler.name,
        "cfg_scale": manifest.guidance.scale,
    }
    pipe = load(manifest.model.source, dtype=manifest.model.dtype)
    again = record(pipe, tmp_path / "again", edits=edits_of(manifest.edits), **settings)
    assert again.manifest.edits == manifest.edits
    assert np.array_equal(again.latents.values, run.latents.values)
    assert np.array_equal(again.final.values, run.final.values)
    assert np.array_equal(again.images.values, run.images.values)
    unedited = record(pipe, tmp_path / "unedited", **settings)
    assert unedited.manifest.edits == ()
    assert np.array_equal(unedited.latents[0].values, run.latents[0].values)
    assert not np.array_equal(unedited.final.values, run.final.values)


def test_an_edit_acts_in_every_batch_and_branch_of_its_steps(
    flow_folder: Path, tmp_path: Path
) -> None:
    """Steps are those of the sampling, however many forwards each takes."""
    pipe = load(flow_folder, dtype="float32")
    plain = record(pipe, tmp_path / "plain")
    edited = record(pipe, tmp_path / "edited", edits=[ds.Temperature(1.5, layers=0, steps=2)])
    before, after = plain.stats["entropy"], edited.stats["entropy"]
    assert before.isel(step=[0, 1]).equals(after.isel(step=[0, 1]))
    assert (before != after).isel(step=2, layer=0).all()
    assert (after > before).isel(step=2, layer=0).all()  # branch, sample, head
    assert np.array_equal(plain.latents[:3].values, edited.latents[:3].values)
    assert not np.array_equal(plain.latents[3].values, edited.latents[3].values)


def test_two_runs_at_one_place_are_replayed_each_as_it_was(
    flow_folder: Path, tmp_path: Path
) -> None:
    """Also if the second was recorded within the same second."""
    pipe = load(flow_folder, dtype="float32")
    place = {"layer": 0, "head": 0, "step": 0, "query": (0, 0)}
    first = record(pipe, tmp_path / "run").attention(**place)
    edits = [ds.Temperature(2.0)]
    second = record(pipe, tmp_path / "run", overwrite=True, edits=edits).attention(**place)
    root = np.sqrt(first.values)
    np.testing.assert_allclose(second.values, root / root.sum(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        (
            [ds.Temperature(2, layers=3)],
            r"Temperature\.layers: there is no layer 3; expected 0 to 2",
        ),
        ([ds.Temperature(2, heads=2)], r"blocks\.0\.attn has no head 2; expected 0 to 1"),
        ([ds.AblateHeads(steps=[3, 4])], r"AblateHeads\.steps: .*no step 4; expected 0 to 3"),
        (ds.Temperature(2), "edits"),
        ([1.3], "edits"),
        ([{"kind": "sharpen"}], "sharpen"),
    ],
)
def test_edits_of_what_is_not_there_write_nothing(
    flow_folder: Path, tmp_path: Path, edits: object, words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        sample(load(flow_folder), LABELS, record=tmp_path / "run", edits=edits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow"]


def test_recording_a_network_that_is_edited_from_outside_is_refused(
    flow_folder: Path, tmp_path: Path
) -> None:
    """Its manifest would not know. Drawing is possible."""
    pipe = load(flow_folder)
    with ds.edit(pipe.model, ds.Temperature(1.3)):
        with pytest.raises(BadRequest, match=r"edits=\[\.\.\.\]"):
            sample(pipe, LABELS, record=tmp_path / "run")
        outside = draw(pipe, batch_size=3)
    assert torch.equal(outside.final, draw(pipe, batch_size=3, edits=[ds.Temperature(1.3)]).final)
    assert not (tmp_path / "run").exists()


def forged(run: Run, change: dict[str, object]) -> Run:
    """The run with another manifest under a right seal."""
    tree = json.loads((run.path / MANIFEST).read_text()) | change
    data = json.dumps(tree).encode()
    (run.path / MANIFEST).write_bytes(data)
    (run.path / COMPLETE).write_bytes(seal_of(data))
    return open_run(run.path)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([{"kind": "sharpen"}], r"run\.json: edits\.0: .*'sharpen'.*'temperature'"),
        ([{"kind": "temperature", "temperature": "2"}], "valid number"),
        (
            [{"kind": "ablate_heads", "layers": [9]}],
            r"edits\.0: there is no layer 9; expected 0 to",
        ),
    ],
)
def test_a_replay_without_its_edits_is_refused(
    flow_folder: Path, tmp_path: Path, edits: list[object], words: str
) -> None:
    run = forged(record(load(flow_folder), tmp_path / "run", qk_steps=(1,)), {"edits": edits})
    assert run.attention(0, 0, 1, (0, 0)).attrs["source"] == "stored"
    with pytest.raises(BadRun, match=words):
        run.attention(0, 0, 0, (0, 0))


def test_runs_from_before_there_were_edits_still_open(flow_folder: Path, tmp_path: Path) -> None:
    run = record(load(flow_folder, dtype="float32"), tmp_path / "run", qk_steps=(1,))
    expected = [run.attention(0, 0, step, (0, 0)).values for step in (0, 1)]
    tree = json.loads((run.path / MANIFEST).read_text())
    assert tree.pop("edits") == [] and [step.pop("scales") for step in tree["steps"]] == [None] * 4
    data = json.dumps(tree).encode()
    (run.path / MANIFEST).write_bytes(data)
    (run.path / COMPLETE).write_bytes(seal_of(data))
    old = open_run(run.path)
    found = [old.attention(0, 0, step, (0, 0)).values for step in (0, 1)]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("scales", [[0.5], [0.5, 0.5, 0.0]])
def test_scales_of_a_step_that_cannot_be(
    flow_folder: Path, tmp_path: Path, scales: list[float]
) -> None:
    run = record(load(flow_folder), tmp_path / "run", qk_steps=(1,))
    steps = json.loads((run.path / MANIFEST).read_text())["steps"]
    steps[1]["scales"] = scales
    with pytest.raises(BadRun, match=r"steps\.1\.scales"):
        forged(run, {"steps": steps})
