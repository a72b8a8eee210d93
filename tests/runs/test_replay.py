"""Attention that was not stored comes from one call of the replay module, and is kept."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ditscope.errors import BadRun
from ditscope.runs import replay
from ditscope.runs.attention_rows import Operands
from ditscope.runs.reader import open_run
from tests.runs.toy import Toy, manifest_of


@pytest.fixture(scope="module")
def toy():
    return Toy(manifest_of(qk_steps=(0, 1, 2)))


@pytest.fixture
def run(tmp_path, toy):
    """The recording of `toy` without any Q and K."""
    toy.manifest, whole = (
        toy.manifest.model_copy(update={"qk_steps": (), "qk_dtype": None}),
        toy.manifest,
    )
    toy.write(tmp_path / "run")
    toy.manifest = whole
    return open_run(tmp_path / "run")


@pytest.fixture
def calls(monkeypatch, toy):
    """Calls of a replay module that answers from `toy`."""
    asked = []

    def replay_step(run, step, sample):
        asked.append((step, sample))
        found = {}
        for layer, scale in enumerate(toy.manifest.scales):
            for order, branch in enumerate(toy.manifest.steps[step].branches):
                parts = (part[order, sample] for part in toy.qk[step, layer][0])
                found[step, branch, sample, layer] = Operands(*parts, scale, "replayed")
        return found

    monkeypatch.setitem(sys.modules, replay.REPLAYER, SimpleNamespace(replay_step=replay_step))
    return asked


def test_replayed_attention_is_exact(run, toy, calls):
    for head in (0, 1):
        row = run.attention(1, head, 2, query=(0, 1), sample=1, branch="uncond")
        expected = toy.probabilities(2, 1, "uncond", 1)[head, 1]
        np.testing.assert_allclose(row.values.ravel(), expected, atol=1e-6)
        assert row.attrs["source"] == "replayed" and row.attrs["row_sum_error"] < 1e-6
    assert calls == [(2, 1)]


def test_stored_steps_are_not_replayed(tmp_path, calls):
    run = open_run(Toy(manifest_of(qk_steps=(1,))).write(tmp_path / "run"))
    assert run.attention(0, 0, 1, (0, 0)).attrs["source"] == "stored"
    assert calls == []
    assert run.attention(0, 0, 2, (0, 0)).attrs["source"] == "replayed"
    assert len(calls) == 1


def test_a_replay_that_contradicts_itself_is_an_error(run, toy, calls, monkeypatch):
    toy.qk[0, 0][0][2][...] += np.float32(0.01)
    with pytest.raises(BadRun, match=r"log-sum-exp \(replayed\) do not belong together"):
        run.attention(0, 0, 0, (0, 0))


def test_without_torch_it_says_what_to_do(run):
    code = f"""
import sys
sys.modules["torch"] = None
from ditscope.errors import ResourceError
from ditscope.runs.reader import open_run
try:
    open_run({str(run.path)!r}).attention(0, 0, 0, (0, 0))
except ResourceError as error:
    assert "Q and K of step 0 are not stored" in str(error), error
    assert "torch is not installed" in str(error), error
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
