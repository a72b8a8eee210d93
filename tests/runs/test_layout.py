"""The layout of a run follows from its manifest, and both have limits."""

import pytest

from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRun
from ditscope.runs.invariants import check
from ditscope.runs.layout import layout_of
from tests.runs.toy import COND, manifest_of

SITES = manifest_of().sites
STEPS = manifest_of().steps

BROKEN = {
    "no sample": ({"labels": (), "sample_seeds": (), "batches": ()}, "labels: no sample"),
    "seeds": ({"sample_seeds": (1,)}, "sample_seeds: 1 seeds for 2 samples"),
    "batches": ({"batches": ((0,), (0, 1))}, "batches: do not hold each of the 2 samples once"),
    "latent": ({"latent_shape": (0, 4, 4)}, "latent_shape: a size below 1"),
    "no step": ({"steps": ()}, "steps: no step"),
    "order": ({"steps": STEPS[::-1]}, r"steps.0.index: 2 at position 0"),
    "branches": (
        {"steps": (STEPS[0].model_copy(update={"branches": ("uncond", "cond")}),)},
        "steps.0.branches: not cond, uncond or both in this order",
    ),
    "committed": ({"committed_steps": (0, 2)}, "committed_steps: not the first 2 of 3 steps"),
    "sites": ({"sites": SITES[::-1]}, r"sites.0.index: 1 at position 0"),
    "grid": (
        {"sites": (SITES[0].model_copy(update={"grid": TokenGrid(height=9, width=9)}), SITES[1])},
        r"sites.0.grid: does not fit in 6 tokens",
    ),
    "name": ({"statistics": ("../../x",)}, r"statistics: '\.\./\.\./x' is not of small letters"),
    "names": ({"statistics": ("a", "a")}, "statistics: a name appears twice"),
    "token name": (
        {"token_statistics": ("speed",)},
        "token_statistics: speed is not in statistics",
    ),
    "token names": (
        {"token_statistics": ("entropy", "entropy")},
        "token_statistics: a name appears twice",
    ),
    "unseen": ({"sites": (), "qk_steps": (), "qk_dtype": None}, "sites: statistics without a site"),
    "qk order": ({"qk_steps": (1, 1)}, "qk_steps: not ascending steps from 0 to 2"),
    "qk range": ({"qk_steps": (3,)}, "qk_steps: not ascending steps from 0 to 2"),
    "qk type": ({"qk_dtype": None}, "qk_dtype: qk_steps and qk_dtype are given together"),
    "qk sites": ({"sites": (), "statistics": ()}, "sites: Q and K without a site"),
    "qk shapes": (
        {"sites": (SITES[0], SITES[1].model_copy(update={"heads": 3}))},
        "sites: Q and K can only be kept where all sites have one shape, not 2",
    ),
    "scales": ({"scales": (0.5,)}, "scales: 1 scales for 2 sites"),
    "scale": ({"scales": (0.5, -1.0)}, "scales: not all positive"),
    "scale nan": ({"scales": (0.5, float("nan"))}, "scales: not all positive"),
}


def test_a_good_manifest_passes():
    check(manifest_of(), "run.json")


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_invariants_are_named(change, message):
    with pytest.raises(BadRun, match=f"^run.json: {message}"):
        check(manifest_of().model_copy(update=change), "run.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_shape": (10**5, 10**5, 10**5)}, "latents: .* numbers; expected at most"),
        ({"latent_shape": (3, 4096, 4096)}, "192 MiB for one sample of one step; .* 64 MiB"),
    ],
)
def test_a_run_beyond_all_measure_is_refused(change, message):
    with pytest.raises(BadRun, match=message):
        layout_of(manifest_of().model_copy(update=change))


def test_too_many_files_are_refused(monkeypatch):
    monkeypatch.setattr("ditscope.runs.layout.MAX_FILES", 10)
    with pytest.raises(BadRun, match="files in one run; expected at most 10"):
        layout_of(manifest_of())


@pytest.mark.parametrize("samples", [1, 2, 7, 12, 64])
@pytest.mark.parametrize("size", [8, 64, 512])
def test_chunks_are_whole_and_bounded(samples, size):
    layout = layout_of(manifest_of(samples=samples, latent_shape=(4, size, size), steps=2))
    for spec in layout.arrays:
        assert all(size % depth == 0 for size, depth in zip(spec.shape, spec.chunks, strict=True))
        assert spec.chunk_nbytes <= 16 * 2**20
        assert len([*spec.chunk_files()]) == spec.num_chunks


def test_the_published_model_keeps_few_files():
    """DiT-XL/2 at 256 px, four samples, all of 50 steps: one file per layer, step and part."""
    manifest = manifest_of(
        steps=50, samples=4, layers=28, heads=16, grid=(16, 16), width=72, qk_dtype="bfloat16"
    )
    manifest = manifest.model_copy(update={"qk_steps": tuple(range(50))})
    layout = layout_of(manifest)
    assert layout.qk["q"].num_chunks == 50 * 28
    assert layout.qk["q"].nbytes == 50 * 28 * 2 * 4 * 16 * 256 * 72 * 2
    one_sample = layout_of(manifest_of(branches=lambda step: COND, qk_steps=()))
    assert one_sample.branches == COND and one_sample.qk == {}
