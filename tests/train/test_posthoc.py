"""Averages made after a training, against averages over all weights that it had, in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ditscope.errors import BadCheckpoint, BadRequest
from ditscope.model.weights import load_weights
from ditscope.pipeline import load
from ditscope.train.checkpoint import checkpoints, newest_checkpoint
from ditscope.train.coarse import coarse_positions, refine
from ditscope.train.export import export
from ditscope.train.loop import Training
from ditscope.train.posthoc import LENGTHS, decay, exponent, fit
from ditscope.train.snapshots import averaged, snapshots
from tests.train.tiny import config, run, same

STEPS, EVERY, COARSE = 60, 6, 20
SETTINGS: dict[str, object] = {
    "precision": "fp32",
    "optimizer": "adamw",
    "steps": STEPS,
    "save_every": 20,
    "snapshot_every": EVERY,
    "coarse_steps": COARSE,
}


def weights_over_time(steps: int, at: int, power: float) -> np.ndarray:
    """How much the weights after each of `steps` steps count in an average at step `at`."""
    found = np.zeros(steps)
    for step in range(at):
        found *= decay(step, power)
        found[step] = 1 - decay(step, power)
    return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Tensor]]]:
    """A training, and its weights after every step: those of the coarse stage made fine."""
    folder = tmp_path_factory.mktemp("posthoc") / "t"
    seen: list[dict[str, Tensor]] = []
    settings = config(**SETTINGS)
    with Training(settings, folder) as training:
        take = training.learner.advance

        def advance(batch):
            came = take(batch)
            state = {name: x.clone() for name, x in training.model.state_dict().items()}
            if training.learner.coarse:
                state = refine(state, settings.model)
            seen.append({name: x.double() for name, x in state.items()})
            return came

        training.learner.advance = advance
        training.run(lambda line: None)
    return folder, seen


def brute_force(seen: list[dict[str, Tensor]], at: int, power: float) -> dict[str, Tensor]:
    share = weights_over_time(len(seen), at, power)
    return {
        name: torch.stack([state[name] * w for state, w in zip(seen, share, strict=True)]).sum(0)
        for name in seen[0]
    }


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """L2, of what is learned."""
    parts = [(one[name].double() - other[name]).square().sum() for name in other]
    return math.sqrt(sum(part.item() for part in parts))


@pytest.mark.parametrize("length", [0.01, *LENGTHS, 0.2, 0.28])
def test_the_length_is_the_deviation_of_the_weight(length: float) -> None:
    steps = 20_000
    weight = weights_over_time(steps, steps, exponent(length))
    time = (np.arange(steps) + 0.5) / steps
    mean = weight @ time
    assert weight.sum() == pytest.approx(1, abs=1e-12)
    assert math.sqrt(weight @ (time - mean) ** 2) == pytest.approx(length, rel=1e-3)


def test_the_published_exponents() -> None:
    """Of the paper: 16.97 and 6.94."""
    assert [round(exponent(length), 2) for length in LENGTHS] == [16.97, 6.94]


@pytest.mark.parametrize(("at", "length"), [(400, 0.15), (400, 0.03), (200, 0.08), (210, 0.1)])
def test_the_error_is_that_of_the_weight_over_time(at: int, length: float) -> None:
    times = [time for time in range(20, 401, 20) for _ in LENGTHS]
    powers = [exponent(each) for _ in range(20, 401, 20) for each in LENGTHS]
    found = fit(times, powers, at, exponent(length))
    made = sum(
        share * weights_over_time(400, time, power)
        for share, time, power in zip(found.shares, times, powers, strict=True)
    )
    wanted = weights_over_time(400, at, exponent(length))
    error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert found.error == pytest.approx(error, rel=0.05, abs=1e-6)
    assert found.shares.sum() == pytest.approx(1)


def test_snapshots_are_the_averages_of_all_weights(recorded) -> None:
    folder, seen = recorded
    assert list(snapshots(folder)) == [*range(EVERY, STEPS + 1, EVERY)]
    for at in (STEPS, 30):
        for length in LENGTHS:
            made, damaged = averaged(folder, config(**SETTINGS), step=at, length=length)
            assert damaged == [] and made.error < 1e-6 and made.step == at
            assert made.pictures == at * 8
            wanted = brute_force(seen, at, exponent(length))
            torch.testing.assert_close(
                {name: x.double() for name, x in made.state.items()}, wanted, rtol=2e-3, atol=2e-4
            )


def test_other_lengths_come_near_the_average_of_all_weights(recorded) -> None:
    """Nearer than what was kept, by far, and by about the error that is told."""
    folder, seen = recorded
    for length in (0.07, 0.15):
        wanted = brute_force(seen, STEPS, exponent(length))
        made, _ = averaged(folder, config(**SETTINGS), step=None, length=length)
        kept = [brute_force(seen, STEPS, exponent(each)) for each in LENGTHS]
        nearest = min(distance(each, wanted) for each in kept)
        assert distance(made.state, wanted) < 0.15 * nearest, length
        assert 0 < made.error < 0.06


def test_a_resumed_training_has_the_same_snapshots(recorded, tmp_path: Path) -> None:
    folder, _ = recorded
    for steps in (20, STEPS):  # the first ends with the coarse stage
        run(config(**{**SETTINGS, "steps": steps}), tmp_path / "t")
    once, twice = newest_checkpoint(folder)[0], newest_checkpoint(tmp_path / "t")[0]
    assert once is not None and twice is not None
    assert same(once.averages, twice.averages) and same(once.model, twice.model)
    mine = {path.relative_to(folder): path.read_bytes() for path in files(folder)}
    theirs = {path.relative_to(tmp_path / "t"): path.read_bytes() for path in files(tmp_path / "t")}
    del theirs[Path("snapshots/0000020/manifest.json")]  # the end of the first
    assert {name: mine[name] for name in mine} == {name: theirs[name] for name in mine}


def test_snapshots_change_nothing_else(recorded, tmp_path: Path) -> None:
    run(config(**{**SETTINGS, "snapshot_every": 0}), tmp_path / "t")
    plain, watched = newest_checkpoint(tmp_path / "t")[0], newest_checkpoint(recorded[0])[0]
    assert plain is not None and watched is not None and plain.averages == {}
    assert same(plain.model, watched.model) and same(plain.ema, watched.ema)
    assert same(plain.optimizer, watched.optimizer)
    assert not (tmp_path / "t" / "snapshots").exists()


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "snapshots").rglob("*") if path.is_file()]


def test_a_step_of_the_past_as_a_pipeline(recorded, tmp_path: Path) -> None:
    folder, seen = recorded
    assert [path.name for path in checkpoints(folder)] == ["ckpt-0000040", "ckpt-0000060"]
    early = export(folder, tmp_path / "early", step=30)
    assert early.config.training["step"] == 30 and early.config.training["ema_length"] == 0.1
    assert early.notes[0].startswith("no checkpoint of step 30 is kept")
    state = load(tmp_path / "early").model.state_dict()
    wanted = brute_force(seen, 30, exponent(0.1))
    torch.testing.assert_close(
        {name: x.double() for name, x in state.items()}, wanted, rtol=2e-2, atol=2e-3
    )
    middle = export(folder, tmp_path / "middle", step=40)  # as its checkpoint has it
    assert middle.notes == () and "ema_length" not in middle.config.training
    assert middle.config.training["pictures"] == 320


def test_a_step_of_the_coarse_stage_is_the_coarse_network(recorded, tmp_path: Path) -> None:
    folder, _ = recorded
    written = export(folder, tmp_path / "coarse", step=18)
    assert written.notes[-1] == "it is in the coarse stage: its patches have 8 pixels"
    pipe = load(tmp_path / "coarse", dtype="float32")
    assert pipe.model.config.patch_size == 8 and pipe.model.pos_embed.shape[1] == 4
    wanted = coarse_positions(config(**SETTINGS).model)
    torch.testing.assert_close(pipe.model.pos_embed, wanted, rtol=1e-2, atol=1e-2)
    snapshot = load_weights(snapshots(folder)[18] / "average-0.1.safetensors")
    for name, tensor in pipe.model.state_dict().items():
        torch.testing.assert_close(tensor, snapshot[name].float(), rtol=1e-2, atol=1e-3)


def test_averages_that_cannot_be_made(recorded, tmp_path: Path) -> None:
    folder, _ = recorded
    for length in (0.0, 0.5, float("nan")):
        with pytest.raises(BadRequest, match=r"ema-length: found .*; expected 0.01 to 0.28"):
            export(folder, tmp_path / "p", ema_length=length)
    for step, problem in {
        61: "after the last whole snapshot, 60",
        33: r"with an error of \d+%; expected at most 25%\n.*such as 30",
    }.items():
        with pytest.raises(BadCheckpoint, match=problem):
            export(folder, tmp_path / "p", step=step)
    run(config(steps=4), tmp_path / "none")
    with pytest.raises(BadCheckpoint, match=r"no snapshots\n.*snapshot_every=STEPS"):
        export(tmp_path / "none", tmp_path / "p", step=2)
    assert not (tmp_path / "p").exists()


def test_a_damaged_snapshot_is_named_and_left_out(tmp_path: Path) -> None:
    settings = config(**{**SETTINGS, "coarse_steps": 0, "steps": 12})
    run(settings, tmp_path / "t")
    folder = snapshots(tmp_path / "t")[6]
    data = bytearray((folder / "average-0.1.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "average-0.1.safetensors").write_bytes(data)
    written = export(tmp_path / "t", tmp_path / "p", ema_length=0.1)
    assert "left out" in written.notes[-1] and "0000006/average-0.1" in written.notes[-1]
    for folder in snapshots(tmp_path / "t").values():
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"no whole snapshot; .*manifest\.json"):
        export(tmp_path / "t", tmp_path / "p", ema_length=0.1, overwrite=True)


def test_a_snapshot_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    settings = config(**{**SETTINGS, "coarse_steps": 0, "steps": 12})
    (tmp_path / "t").mkdir()
    with Training(settings, tmp_path / "t") as training:
        (tmp_path / "t" / "snapshots").write_text("in the way")
        told: list[str] = []
        training.run(lambda line: None, told.append)
    assert training.step == 12 and any("no snapshot at step 6" in text for text in told)
    said = [json.loads(line) for line in (tmp_path / "t" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in said if line.get("event") == "snapshot failed"] == [6, 12]
