"""The usual claims on runs that confirm them, refute them, or leave them open."""

import numpy as np
import pytest

from ditscope.analysis.claims import usual_claims
from tests.analysis import heads
from tests.analysis.constructed import with_maps, with_statistics

NAMES = ["global early", "local middle", "texture late", "local low, global high"]


def verdicts(run):
    found = usual_claims(run)
    assert found["claim"].values.tolist() == NAMES
    return dict(zip(NAMES, found["verdict"].values.tolist(), strict=True)), found


def distances(thirds, layers=(1.0, 1.0, 1.0), samples=5, noise=0.01):
    """Distances that are `thirds` over the run, times `layers` over depth."""
    curve = np.repeat(thirds, 3)[:, None, None, None, None]
    values = curve * np.asarray(layers)[:, None] * np.ones((9, 1, samples, len(layers), 2))
    return values + noise * np.random.default_rng(0).normal(size=values.shape)


@pytest.mark.parametrize(
    ("thirds", "layers", "expected"),
    [
        ([3, 1, 2], (1, 1.1, 1.3), ["holds", "holds", "holds"]),
        ([1, 3, 2], (1.3, 1.1, 1), ["the opposite holds"] * 3),
        ([2, 2, 2], (1, 1.3, 1), ["undecided", "undecided", "undecided"]),
    ],
)
def test_distances_confirm_and_refute(tmp_path, thirds, layers, expected):
    run = with_statistics(tmp_path / "run", {"rms_distance": distances(thirds, layers)})
    words, found = verdicts(run)
    assert [words[name] for name in NAMES if name != "texture late"] == expected
    assert words["texture late"] == "cannot be told"
    assert "--qk-steps" in str(found.sel(claim="texture late")["missing"].item())


def test_the_number_is_the_contrast_in_patches(tmp_path):
    run = with_statistics(tmp_path / "run", {"rms_distance": distances([3, 1, 2], noise=0.0)})
    found = usual_claims(run)
    early, middle = (found.sel(claim=name) for name in NAMES[:2])
    assert early["mean"].item() == pytest.approx(3 - 1.5)
    assert middle["mean"].item() == pytest.approx(2.5 - 1)
    np.testing.assert_allclose(early["layer_mean"], 1.5, rtol=1e-6)


def test_a_claim_may_hold_in_some_layers_only(tmp_path):
    values = distances([2, 2, 2])
    values[:3, :, :, 1] += 1
    values[:3, :, :, 2] -= 0.5
    found = usual_claims(with_statistics(tmp_path / "run", {"rms_distance": values}))
    early = found.sel(claim="global early")
    assert early["layer_verdict"].values.tolist()[1:] == ["holds", "the opposite holds"]


@pytest.mark.parametrize("late", [True, False])
def test_texture_is_read_from_stored_maps(tmp_path, late):
    def weights(step, branch, sample, layer):
        fine = (step >= 2) == late
        width = (0.6 if fine else 2.0) + 0.02 * sample
        return heads.local((6, 8), width)[None]

    run = with_maps(tmp_path / "run", weights, grid=(6, 8), steps=3, samples=3)
    words, found = verdicts(run)
    assert words["texture late"] == ("holds" if late else "the opposite holds")
    assert words["local low, global high"] == "cannot be told"
    assert found.sel(claim="texture late")["missing"].item() == ""


def test_one_sample_leaves_all_undecided(tmp_path):
    values = distances([3, 1, 2], (1, 2, 3), samples=1)
    words, found = verdicts(with_statistics(tmp_path / "run", {"rms_distance": values}))
    assert words["global early"] == words["local low, global high"] == "undecided"
    assert found.sel(claim="global early")["mean"].item() > 1


def test_few_steps_and_missing_distances_are_said(tmp_path):
    one = with_statistics(tmp_path / "one", {"rms_distance": distances([1, 1, 1])[:1]})
    words, found = verdicts(one)
    assert words["global early"] == "cannot be told"
    assert found.sel(claim="global early")["missing"].item() == "fewer than three steps"
    bare = with_statistics(tmp_path / "bare", {"entropy": distances([1, 1, 1])})
    assert set(verdicts(bare)[0].values()) == {"cannot be told"}
