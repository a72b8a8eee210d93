"""Two runs on shared coordinates: planted differences are found first, and nothing else is."""

import numpy as np
import pytest

import ditscope as ds
from ditscope.analysis.compare import most_changed
from ditscope.analysis.recorded import even_value
from ditscope.errors import BadRequest
from tests.analysis.constructed import with_statistics


def noisy(samples, seed, layers=2, heads=3, steps=4, branches=1):
    random = np.random.default_rng(seed)
    shape = (steps, branches, samples, layers, heads)
    common = 0.05 * random.normal(size=(1, branches, samples, layers, heads))
    return {
        "entropy": 2.0 + common + 0.01 * random.normal(size=shape),
        "received_max": 0.2 + 0.1 * common + 0.001 * random.normal(size=shape),
    }


def run_of(path, values, **options):
    seeds = options.pop("seeds", None)
    return with_statistics(path, values, seeds=seeds, **options)


def pair(tmp_path, samples=8, seeds_b=range(100, 108), change=lambda values: None):
    tmp_path.mkdir(exist_ok=True)
    values = noisy(samples, 3)
    change(values)
    a = run_of(tmp_path / "a", noisy(samples, 0))
    return a, run_of(tmp_path / "b", values, seeds=list(seeds_b)[:samples])


def plant(values):
    values["entropy"][:2, :, :, 1, 2] -= 1.0  # the noisier half of the steps


def test_a_planted_difference_is_first_and_alone_beyond_chance(tmp_path):
    a, b = pair(tmp_path, change=plant)
    found = ds.compare(a, b)
    assert found["p"].dims == ("metric", "noise", "layer", "head")
    first = most_changed(found, 2)
    assert first["metric"].values.tolist() == ["entropy"] * 2
    assert first["layer"].values.tolist() == [1, 1] and first["head"].values.tolist() == [2, 2]
    assert sorted(first["noise"].values.tolist()) == [0.625, 0.875]
    assert (first["p_adjusted"] <= 0.05).all()
    assert int((found["p_adjusted"] <= 0.05).sum()) == 2


def test_numbers_are_those_of_the_runs_in_units_of_even_attention(tmp_path):
    a, b = pair(tmp_path, change=plant)
    found = ds.compare(a, b).sel(metric="entropy", noise=0.875, layer=1, head=2)
    even = even_value("entropy", a.manifest.sites[0])
    step = a.stats["entropy"].sel(branch="cond", layer=1, head=2, step=0).astype(float)
    other = b.stats["entropy"].sel(branch="cond", layer=1, head=2, step=0).astype(float)
    assert found["mean_a"].item() == pytest.approx(step.mean().item() / even)
    difference = (other.mean() - step.mean()).item() / even
    assert found["difference"].item() == pytest.approx(difference)
    assert found["low"] < difference < found["high"] < 0
    assert found["effect"] < -3


def test_equal_noise_makes_pairs(tmp_path):
    a, b = pair(tmp_path, seeds_b=range(8), change=plant)
    paired = ds.compare(a, b)
    assert (paired.attrs["design"], paired.attrs["samples"]) == ("paired by seed", (8, 8))
    place = paired.sel(metric="entropy", noise=0.875, layer=1, head=2)
    assert place["p"].item() == pytest.approx(2 / 2**8)
    assert ds.compare(*pair(tmp_path / "x")).attrs["design"] == "independent"


def test_equal_seeds_of_another_process_are_other_noise(tmp_path):
    a, b = pair(tmp_path, seeds_b=range(8))
    model = b.manifest.model.model_copy(update={"process": {"kind": "another"}})
    b.manifest = b.manifest.model_copy(update={"model": model})
    assert ds.compare(a, b).attrs["design"] == "independent"


def test_a_run_does_not_differ_from_itself(tmp_path):
    a, _ = pair(tmp_path)
    found = ds.compare(a, a)
    assert (found["difference"] == 0).all() and (found["p_adjusted"] == 1).all()
    assert (found["low"] == 0).all() and found["effect"].isnull().all()


def test_seeds_alone_make_no_difference_beyond_chance(tmp_path):
    found = ds.compare(*pair(tmp_path))
    assert not (found["p_adjusted"] <= 0.05).any()


def test_classes_of_one_run(tmp_path):
    values = noisy(8, 0)
    values["entropy"][:, :, 1::2, 0, 0] += 0.5
    labels = ["dog face", "rocket"] * 4
    run = with_statistics(tmp_path / "run", values, labels=labels)
    found = ds.compare(run, run, class_a="Dog face", class_b=1)
    assert found.attrs["samples"] == (4, 4) and found.attrs["design"] == "independent"
    assert found["difference"].sel(metric="entropy", layer=0, head=0).min() > 0.1
    with pytest.raises(BadRequest, match="there is no class 'cat'"):
        ds.compare(run, run, class_a="cat")
    with pytest.raises(BadRequest, match="no sample is of class 7; expected one of 0, 1"):
        ds.compare(run, run, class_b=7)


def test_models_of_other_size_are_compared_by_depth(tmp_path):
    a = run_of(tmp_path / "a", noisy(5, 0, layers=5, heads=2), grid=(4, 5))
    values = noisy(5, 1, layers=3, heads=4, steps=7)
    ratio = even_value("entropy", a.manifest.sites[0])
    b = run_of(tmp_path / "b", values, grid=(8, 8))
    found = ds.compare(a, b)
    assert found.attrs["layers"] == "relative depth"
    assert found["layer"].values.tolist() == [0, 0.5, 1] and found["head"].values.tolist() == [
        "mean"
    ]
    steps = a.stats["entropy"].sel(branch="cond", step=0).astype(float) / ratio
    expected = steps.mean(["head", "sample"]).values[[0, 2, 4]]
    np.testing.assert_allclose(
        found["mean_a"].sel(metric="entropy", noise=0.875, head="mean"), expected
    )


def test_one_sample_has_differences_and_no_more(tmp_path):
    a, b = pair(tmp_path, samples=1, change=plant)
    found = ds.compare(a, b)
    assert found["difference"].notnull().all()
    assert all(found[name].isnull().all() for name in ("low", "high", "effect", "p", "p_adjusted"))
    first = most_changed(found, 1)
    assert (first["layer"].item(), first["head"].item()) == (1, 2)


def test_runs_without_common_noise_or_statistics_are_refused(tmp_path):
    a = run_of(tmp_path / "a", noisy(2, 0, steps=1))
    values = noisy(2, 0, steps=4)
    b = run_of(tmp_path / "b", values)
    assert ds.compare(a, b)["noise"].values.tolist() == [0.875]
    other = run_of(tmp_path / "c", {"received_max": values["received_max"]})
    assert ds.compare(b, other)["metric"].values.tolist() == ["received_max"]
    entropy = run_of(tmp_path / "d", {"entropy": values["entropy"]})
    with pytest.raises(BadRequest, match="share no statistic"):
        ds.compare(entropy, other)
    with pytest.raises(BadRequest, match="gini cannot all be put in units of even attention"):
        ds.compare(a, b, metrics=["gini"])
    with pytest.raises(BadRequest, match="'uncond' is not in this run"):
        ds.compare(a, b, branch="uncond")


def test_ranges_of_noise_that_only_one_run_has_are_left_out(tmp_path):
    a = run_of(tmp_path / "a", noisy(2, 0, steps=1))
    late = noisy(2, 0, steps=4)
    b = run_of(tmp_path / "b", late)
    manifest = b.manifest
    steps = tuple(s.model_copy(update={"noise_level": 0.1}) for s in manifest.steps)
    b.manifest = b.layout.manifest.model_copy(update={"steps": steps})

    with pytest.raises(BadRequest, match="no range of noise levels in common"):
        ds.compare(a, b)


def test_two_steps_of_the_same_pictures_are_paired(tmp_path):
    random = np.random.default_rng(7)
    values = 2 + random.normal(0, 0.5, (1, 1, 8, 2, 2)) + random.normal(0, 0.01, (6, 1, 8, 2, 2))
    values[4:, :, :, 1, 0] += 0.2  # small beside the pictures, large beside the steps of one
    run = with_statistics(tmp_path / "run", {"entropy": values})
    found = ds.compare(run, run, steps_a=[1], steps_b=[4, 5])
    assert found.attrs["design"] == "paired by seed" and found.attrs["steps"] == "named"
    assert found.sizes["noise"] == 1
    even = even_value("entropy", run.manifest.sites[0])
    expected = (values[4:].mean(0) - values[1])[0].mean(0) / even
    np.testing.assert_allclose(found["difference"].values[0, 0], expected, atol=1e-6)
    sure = (found["p_adjusted"] <= 0.05).values[0, 0]
    assert sure.tolist() == [[False, False], [True, False]]
    same = ds.compare(run, run, steps_a=[2])
    assert (same["difference"] == 0).all()


@pytest.mark.parametrize("steps", [[6], [], [-1]])
def test_steps_that_are_not_recorded(tmp_path, steps):
    run = with_statistics(tmp_path / "run", {"entropy": np.ones((6, 1, 2, 1, 1))})
    with pytest.raises(BadRequest, match="step"):
        ds.compare(run, run, steps_a=steps)
