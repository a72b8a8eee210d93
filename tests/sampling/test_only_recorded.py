"""A run of which a part was measured, or estimated: what is stored and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditscope.analysis.atlas import head_atlas
from ditscope.analysis.diagnose.engine import diagnose
from ditscope.analysis.place import locate
from ditscope.analysis.recorded import metric_names, recorded
from ditscope.attention import capture as capture_module
from ditscope.core.keep import Keep
from ditscope.errors import BadRequest
from ditscope.pipeline import load
from ditscope.runs.reader import Run, open_run
from ditscope.sampling.draw import sample

LABELS = ["ant", "bee", "cat"]
PART = Keep(layers=[0, 2], heads=1, steps=[1, 3], branches="uncond")


def run_of(folder: Path, path: Path, **settings: object) -> Run:
    pipe = load(folder, dtype="float32")
    settings = {"steps": 4, "batch_size": 2, "cfg_scale": 2.0, **settings}
    run = sample(pipe, LABELS, record=path, **settings)
    assert isinstance(run, Run)
    return run


def test_a_part_is_the_same_and_the_rest_is_missing(
    flow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = ("entropy", "received_max", "step_overlap", "branch_overlap", "head_similarity")
    whole = run_of(flow_folder, tmp_path / "whole", metrics=metrics, detail="tokens")
    made = []
    original = capture_module.measure
    monkeypatch.setattr(
        capture_module, "measure", lambda *given: made.append(1) or original(*given)
    )
    run = run_of(flow_folder, tmp_path / "run", metrics=metrics, detail="tokens", only=PART)
    assert len(made) == 2 * 2 * 2  # batches, steps, layers
    assert np.array_equal(run.final, whole.final) and np.array_equal(run.images, whole.images)
    assert run.verify().ok and open_run(run.path).manifest.only.facts() == PART.facts()
    for found, every in ((run.stats, whole.stats), (run.tokens, whole.tokens)):
        for name, values in found.items():
            here = {"step": [1, 3], "branch": ["uncond"], "layer": [0, 2], "head": [1]}
            kept = values.sel(here)
            np.testing.assert_allclose(kept, every[name].sel(here), rtol=1e-5)
            assert values.notnull().sum() == kept.notnull().sum() > 0
    steps = [step.index for step in run.steps if step.proven_queries]
    assert steps == [1, 3] and run.proof["output"].notnull().any()


def test_an_estimate_is_the_same_every_time(flow_folder: Path, tmp_path: Path) -> None:
    only = Keep(queries=8)
    run = run_of(flow_folder, tmp_path / "run", only=only, qk_steps=(1,))
    assert run.manifest.statistics == (
        *("entropy", "rms_distance"),
        *("entropy_error", "rms_distance_error"),
    )
    assert run.verify().ok
    again = run_of(flow_folder, tmp_path / "again", only=only)
    assert run.stats.equals(again.stats)
    other = run_of(flow_folder, tmp_path / "other", only=only, seed=1)
    assert not np.array_equal(run.stats["entropy"], other.stats["entropy"])
    whole = run_of(flow_folder, tmp_path / "whole")
    assert np.array_equal(run.final, whole.final)
    off = abs(run.stats["entropy"] - whole.stats["entropy"]) / run.stats["entropy_error"]
    assert float((off < 2.776).mean()) > 0.8  # t of four strata; heads of a layer share a draw
    assert run.stats["entropy_error"].attrs["long_name"].startswith("standard error of")
    row = run.attention(layer=1, head=0, step=1, query=(1, 2))
    assert float(row.sum()) == pytest.approx(1, abs=1e-5)


def test_readers_know_errors_from_metrics(flow_folder: Path, tmp_path: Path) -> None:
    run = run_of(flow_folder, tmp_path / "run", only=Keep(queries=8))
    assert metric_names(run) == ["entropy", "rms_distance"]
    assert recorded(run, metrics=["entropy_error"])["unit"].values.tolist() == ["nats"]
    assert locate(run).head in (0, 1)  # chosen without what the keys receive
    said = str(diagnose(run).skipped)
    assert "received_max" in said and "without --record-queries" in said


def test_unmeasured_places_name_the_option(flow_folder: Path, tmp_path: Path) -> None:
    run = run_of(flow_folder, tmp_path / "run", only=PART)
    for ask, message in (
        (lambda: recorded(run), r"branch: nothing was measured at branch cond"),
        (
            lambda: recorded(run, layers=[1], branch="uncond"),
            r"layer: nothing was measured at layer 1 (?s:.*)expected one of 0, 2"
            r"(?s:.*)--record-layers",
        ),
        (
            lambda: head_atlas(run, step=0, branch="uncond"),
            r"step: nothing was measured at step 0 (?s:.*)--record-steps",
        ),
        (lambda: locate(run, step=2, branch="uncond"), r"nothing was measured at step 2"),
    ):
        with pytest.raises(BadRequest, match=message):
            ask()
    assert recorded(run, branch="uncond")["step"].values.tolist() == [1, 3]
    assert locate(run, branch="uncond").step in (1, 3)
    found = diagnose(run)
    assert not found.findings  # what was not measured is no finding
    assert "--record-layers" in str(found.skipped)


def test_selections_of_a_run_that_are_refused(flow_folder: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"only": Keep(steps=4)}, r"Keep\.steps: there is no step 4; expected 0 to 3"),
        ({"only": Keep(layers="x")}, r"Keep\.layers: there is no layer x"),
        (
            {"only": Keep(branches="uncond"), "cfg_scale": 1.0},
            r"Keep\.branches: no step evaluates uncond; expected cond",
        ),
        (
            {"only": Keep(branches="uncond", steps=0), "cfg_interval": (0.0, 0.5)},
            "none of these steps evaluates one of these branches",
        ),
        ({"only": Keep(queries=8), "metrics": ("received_max",)}, "received_max needs every query"),
        ({"only": Keep(queries=8), "detail": "tokens"}, "detail: found 'tokens'"),
        ({"only": 3}, "only: found 3"),
    ):
        with pytest.raises(BadRequest, match=message):
            run_of(flow_folder, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
