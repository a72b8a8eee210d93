"""One class against the others: by definition, and false alarms as rare as promised."""

import numpy as np
import pytest
from scipy import stats

from ditscope.analysis.class_reference import against_others
from ditscope.analysis.recorded import even_value
from ditscope.errors import BadRequest
from tests.analysis.constructed import with_statistics

CLASSES = ["ant", "bee", "cow", "dog", "eel", "fox"]


def run_of(folder, odd=0.0, seed=0, classes=CLASSES, per_class=2, **options):
    """Entropies that differ from class to class; head 1 of layer 1 more by `odd` for "cow"."""
    random = np.random.default_rng(seed)
    names = [name for name in classes for _ in range(per_class)]
    of_class = {name: random.normal(2, 0.1, (2, 3)) for name in sorted(set(classes))}
    values = np.stack([of_class[name] for name in names]) + random.normal(
        0, 0.02, (4, 1, len(names), 2, 3)
    )
    values[:, :, [name == "cow" for name in names], 1, 1] += odd
    return with_statistics(folder, {"entropy": values}, labels=names, **options), values


def test_it_is_its_definition(tmp_path):
    run, values = run_of(tmp_path / "run", odd=1.0)
    found = against_others(run, "cow")
    assert found.attrs["others"] == [name for name in CLASSES if name != "cow"]
    even = even_value("entropy", run.manifest.sites[0])
    first = values[0, 0].astype(np.float32).astype(float) / even  # noise 1: the last range
    means = {name: first[2 * i : 2 * i + 2, 1, 1].mean() for i, name in enumerate(CLASSES)}
    others = np.array([mean for name, mean in means.items() if name != "cow"])
    here = found.sel(metric="entropy", layer=1, head=1).isel(noise=-1)
    z = (means["cow"] - others.mean()) / others.std(ddof=1)
    assert float(here["z"]) == pytest.approx(z, rel=1e-6)
    assert float(here["below"]) == 1
    t = z / np.sqrt(1 + 1 / 5)
    assert float(here["p"]) == pytest.approx(2 * stats.t.sf(abs(t), 4))
    odd = found["p_adjusted"].where(found["p_adjusted"] <= 0.05, drop=True)
    assert (odd["layer"].values.tolist(), odd["head"].values.tolist()) == ([1], [1])


def test_false_alarms_are_as_rare_as_their_p(tmp_path):
    runs = [run_of(tmp_path / str(seed), seed=seed)[0] for seed in range(8)]
    p = np.stack([against_others(run, name)["p"].values for run in runs for name in CLASSES[:3]])
    assert np.mean(p[np.isfinite(p)] <= 0.05) == pytest.approx(0.05, abs=0.02)


def test_the_reference_may_be_another_run(tmp_path):
    run, _ = run_of(tmp_path / "one", classes=["cow"], odd=1.0)
    reference, _ = run_of(tmp_path / "many", seed=1)
    found = against_others(run, "cow", reference=reference)
    assert "cow" not in found.attrs["others"] and len(found.attrs["others"]) == 5
    assert float(found["z"].sel(layer=1, head=1).min()) > 3


@pytest.mark.parametrize(
    ("classes", "label", "words"),
    [
        (["ant", "bee", "cow"], "cow", "2 other classes (ant, bee) are no distribution"),
        (CLASSES, "gnu", "there is no class 'gnu'"),
    ],
)
def test_too_few_classes_are_no_distribution(tmp_path, classes, label, words):
    run, _ = run_of(tmp_path / "run", classes=classes)
    with pytest.raises(BadRequest) as caught:
        against_others(run, label)
    assert words in str(caught.value)


def test_models_that_differ_have_no_heads_in_common(tmp_path):
    run, _ = run_of(tmp_path / "run")
    other = with_statistics(tmp_path / "other", {"entropy": np.ones((2, 1, 4, 1, 3))})
    with pytest.raises(BadRequest, match="different layers or heads"):
        against_others(run, "cow", reference=other)
