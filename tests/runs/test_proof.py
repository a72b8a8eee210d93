"""The proof in a run: its numbers are those of the whole matrix, and what does not fit is named."""

import dataclasses

import numpy as np
import pytest

from ditscope.errors import BadRequest, BadRun
from ditscope.runs import proof
from ditscope.runs.proof import Witness
from ditscope.runs.reader import open_run
from ditscope.runs.writer import RunWriter
from tests.runs.damage import refused
from tests.runs.toy import Toy, manifest_of

QUERIES = (1, 4)


def proven(manifest):
    steps = [each.model_copy(update={"proven_queries": QUERIES}) for each in manifest.steps]
    return manifest.model_copy(update={"steps": tuple(steps)})


class ProvenToy(Toy):
    """A recording with values and outputs of a kernel, off by `error`."""

    error = 0.0

    def __post_init__(self):
        self.manifest = proven(self.manifest)
        super().__post_init__()

    def write_step(self, writer, step):
        shape = (2, len(self.manifest.labels), len(self.manifest.sites), 2)
        errors = {name: np.full(shape, np.nan, np.float32) for name in proof.ERRORS}
        for layer in range(len(self.manifest.sites)) if step in self.manifest.qk_steps else ():
            (q, k, lse), p = self.qk[step, layer]
            values = self.random.standard_normal(k.shape[:-1]).astype(np.float32)
            outputs = (p @ values[..., None])[..., list(QUERIES), 0].astype(np.float32)
            witness = Witness(values, outputs + np.float32(self.error))
            rows = [part[..., list(QUERIES), :] for part in (q, lse[..., None])]
            found = proof.errors(rows[0], k, rows[1][..., 0], witness, 0.5)
            for name, each in found.items():
                errors[name][:, :, layer] = each
            writer.write_qk(step, layer, q, k, lse, witness=witness)
        if step not in self.manifest.qk_steps:
            for each in errors.values():
                each[0, 0, step % 2] = 1e-7
        writer.write_step(step, self.latents[step], self.stats[step], proof=errors)
        writer.commit_step(step)


def test_errors_are_those_of_the_whole_matrix():
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((3, 2, 7, 4)).astype(np.float32) * 2 for _ in range(3))
    scores = 0.5 * q.astype(float) @ k.astype(float).swapaxes(-1, -2)
    lse = np.log(np.exp(scores).sum(-1)) + 0.01  # wrong on purpose: rows sum to exp(-0.01)
    r = np.array([1, -1, -1, 1]) / 2
    o = random.standard_normal((3, 2, 7, 4))
    p = np.exp(scores - lse[..., None])
    sums = np.abs(p.sum(-1) - 1)[..., list(QUERIES)].max(-1)
    apart = np.abs((p @ v - o) @ r)[..., list(QUERIES)].max(-1) / np.abs(v @ r).max(-1)
    witness = Witness((v @ r).astype(np.float32), (o @ r)[..., list(QUERIES)].astype(np.float32))
    rows = list(QUERIES)
    found = proof.errors(q[..., rows, :], k, lse[..., rows].astype(np.float32), witness, 0.5)
    np.testing.assert_allclose(found["row_sum"], sums, atol=1e-6)
    np.testing.assert_allclose(found["output"], apart, rtol=1e-5)


def test_it_is_read_and_computed_again(tmp_path):
    run = open_run(ProvenToy(manifest_of(samples=4)).write(tmp_path / "run"))
    assert run.proof["row_sum"].dims == ("step", "branch", "sample", "layer", "head")
    assert np.isfinite(run.proof["output"].sel(step=1)).all()
    found = run.verify()
    assert found.ok, found.problems
    assert found.num_rows == 32 + 2 * 4 * 2 * 2 * len(QUERIES)
    for name, largest in found.proof.items():
        assert largest == pytest.approx(run.proof[name].sel(step=1).max().item(), abs=1e-6)
        assert largest < 1e-5


def test_a_kernel_that_computed_something_else_is_named(tmp_path):
    toy = ProvenToy(manifest_of())
    toy.error = 0.1
    (recorded, *_) = open_run(toy.write(tmp_path / "run")).verify().problems
    assert "step 1: rebuilt P V against the output of the kernel" in recorded


def test_a_proof_that_was_not_found_is_named(tmp_path, monkeypatch):
    toy = ProvenToy(manifest_of())
    honest = proof.errors
    with monkeypatch.context() as patch:
        zero = lambda *parts: {name: 0 * each for name, each in honest(*parts).items()}
        patch.setattr(proof, "errors", zero)
        patch.setattr(ProvenToy, "error", 0.01)
        toy.write(tmp_path / "run")
    problems = open_run(tmp_path / "run").verify().problems
    assert any("layer 0: output of its proof is not what was recorded" in each for each in problems)


def test_what_is_missing_or_too_much_is_refused(tmp_path):
    toy = ProvenToy(manifest_of())
    plain = Toy(manifest_of())
    with (
        pytest.raises(BadRequest, match="expected q, k, lse, values"),
        RunWriter(tmp_path / "run", toy.manifest) as writer,
    ):
        toy.write_step(writer, 0)
        writer.write_qk(1, 0, *plain.qk[1, 0][0])
    queries = (
        dataclasses.replace(plain).manifest.steps[1].model_copy(update={"proven_queries": (2, 9)})
    )
    steps = (plain.manifest.steps[0], queries, plain.manifest.steps[2])
    with pytest.raises(BadRun, match="not ascending queries below 6"):
        RunWriter(tmp_path / "other", plain.manifest.model_copy(update={"steps": steps}))


def test_a_damaged_witness_is_named(tmp_path):
    folder = ProvenToy(manifest_of()).write(tmp_path / "run")
    file = folder / "data.zarr/qk/outputs/c.0.0.0.1.0.0"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    (problem,) = open_run(folder).verify().problems
    assert str(file) in problem
    file.unlink()
    assert "is missing" in refused(folder)
