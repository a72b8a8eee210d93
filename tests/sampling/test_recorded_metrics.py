"""Metrics of a recorded run: chosen by name, stored by name, and what a replay would say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditscope.core.statistics import DEFAULT_METRICS, STATISTICS
from ditscope.errors import BadRequest
from ditscope.pipeline import load
from ditscope.runs.reader import Run, open_run
from ditscope.sampling.draw import sample

LABELS = ["ant", "bee", "cat"]
POSSIBLE = tuple(name for name in STATISTICS if name[5:] not in ("text", "class", "register"))
"""Of a network whose tokens are all patches."""


def recorded(folder: Path, path: Path, **settings: object) -> Run:
    pipe = load(folder, dtype="float32")
    settings = {"steps": 3, "batch_size": 2, "cfg_scale": 2.0, **settings}
    run = sample(pipe, LABELS, record=path, **settings)
    assert isinstance(run, Run)
    return run


def test_every_metric_is_stored_under_its_name(flow_folder: Path, tmp_path: Path) -> None:
    plain = recorded(flow_folder, tmp_path / "plain")
    assert tuple(plain.stats) == DEFAULT_METRICS and not plain.tokens.data_vars
    run = recorded(flow_folder, tmp_path / "run", metrics=POSSIBLE, detail="tokens")
    assert np.array_equal(run.final, plain.final)  # one bit more would be one too many
    assert tuple(run.stats) == POSSIBLE
    assert run.verify().ok
    for name, values in run.stats.items():
        assert values.attrs["long_name"] == STATISTICS[str(name)].long_name
        assert values.attrs["units"] == STATISTICS[str(name)].unit


def test_tokens_are_those_of_the_replayed_map(flow_folder: Path, tmp_path: Path) -> None:
    run = recorded(
        flow_folder,
        tmp_path / "run",
        metrics=("entropy", "largest_probability", "received_max", "low_frequency"),
        detail="tokens",
        qk_steps=(1,),
    )
    run = open_run(run.path)
    assert set(run.tokens) == {"entropy", "largest_probability", "received_max"}
    assert run.tokens["entropy"].dims == (
        *("step", "branch", "sample", "layer", "head"),
        "token",
    )
    at = {"step": 1, "branch": "uncond", "sample": 2, "layer": 1, "head": 1}
    rows = np.stack(
        [
            run.attention(
                layer=1, head=1, step=1, query=q, sample=2, branch="uncond"
            ).values.ravel()
            for q in range(24)
        ]
    )
    found = {str(name): values.sel(at).values for name, values in run.tokens.items()}
    assert found["entropy"] == pytest.approx(-(rows * np.log(rows)).sum(-1), abs=1e-5)
    assert found["largest_probability"] == pytest.approx(rows.max(-1), abs=1e-6)
    assert found["received_max"] == pytest.approx(rows.mean(0), abs=1e-6)
    assert float(run.stats["entropy"].sel(at)) == pytest.approx(found["entropy"].mean(), abs=1e-5)


def test_metrics_that_are_refused(flow_folder: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"metrics": ("entropi",)}, "no metric entropi(?s:.*)did you mean entropy"),
        ({"metrics": ("entropy", "entropy")}, "metrics: names one twice"),
        ({"detail": "words"}, "detail: found 'words'; expected heads or tokens"),
        ({"metrics": ("mass_class", "entropy")}, "metrics: mass_class has no value at any site"),
        ({"metrics": ("branch_kl",), "cfg_scale": 1.0}, "branch_kl compares(?s:.*)cfg_scale=4"),
        (
            {"metrics": ("branch_kl",), "cfg_interval": (0.0, 0.01)},
            "branch_kl compares two branches, and no step evaluates both",
        ),
        ({"metrics": ("step_kl", "entropy"), "steps": 1}, "step_kl compares .*; expected 2"),
    ):
        with pytest.raises(BadRequest, match=message):
            recorded(flow_folder, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


BETWEEN = [f"{what}_{how}" for what in ("step", "branch") for how in ("overlap", "kl")]


def all_rows(run: Run, step: int, branch: str, sample_: int, layer: int, head: int) -> np.ndarray:
    return np.stack(
        [
            run.attention(layer, head, step, q, sample_, branch).values.ravel().astype(float)
            for q in range(24)
        ]
    )


def test_steps_and_branches_are_compared(flow_folder: Path, tmp_path: Path) -> None:
    """Against the maps that are rebuilt from Q and K; guidance is off at the first step."""
    run = recorded(
        flow_folder,
        tmp_path / "run",
        metrics=tuple(BETWEEN),
        qk_steps=(0, 1, 2),
        cfg_interval=(0.0, 0.9),
    )
    assert [step.branches for step in run.steps] == [("cond",), *[("cond", "uncond")] * 2]
    assert run.verify().ok
    assert run.stats.isel(step=0).to_array().isnull().all()
    for at in (
        {"step": 1, "branch": "cond", "sample": 2, "layer": 1, "head": 0},
        {"step": 2, "branch": "uncond", "sample": 1, "layer": 2, "head": 1},
    ):
        place = (at["sample"], at["layer"], at["head"])
        p = all_rows(run, at["step"], at["branch"], *place)
        before = all_rows(run, at["step"] - 1, at["branch"], *place)
        other = all_rows(run, at["step"], {"cond": "uncond"}.get(at["branch"], "cond"), *place)
        for what, second in (("step", before), ("branch", other)):
            found = {how: float(run.stats[f"{what}_{how}"].sel(at)) for how in ("overlap", "kl")}
            common = np.minimum(p, second).sum(-1).mean()
            assert found["overlap"] == pytest.approx(common, abs=1e-5)
            divergence = (p * np.log(p / second)).sum(-1).mean()
            assert found["kl"] == pytest.approx(divergence, abs=1e-5)
    uncond = run.stats.sel(step=1, branch="uncond")
    assert uncond["step_kl"].isnull().all() and uncond["branch_kl"].notnull().all()
