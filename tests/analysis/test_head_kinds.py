"""Kinds of heads: each is found where it was built, and what cannot be told says why."""

import numpy as np
import pytest
import xarray

from ditscope.analysis.head_kinds import KINDS, head_kinds
from ditscope.analysis.pictures import object_mask
from ditscope.core.sites import TokenGrid
from ditscope.errors import BadRequest
from tests.analysis import heads
from tests.analysis.constructed import with_maps
from tests.analysis.recorded import picture, record

GRID = (6, 8)
SHOWN = xarray.DataArray(picture(), dims=("y", "x", "channel"))
MASK = object_mask(SHOWN, TokenGrid(height=6, width=8))
BUILT = {
    "dead": lambda seed: heads.even(GRID),
    "sink": lambda seed: heads.sink(GRID),
    "diffuse": lambda seed: heads.nearly_even(GRID, seed),
    "diagonal": lambda seed: heads.diagonal(GRID, (1, -1)),
    "row": lambda seed: heads.row(GRID),
    "column": lambda seed: heads.column(GRID),
    "local": lambda seed: heads.local(GRID),
    "semantic": lambda seed: heads.semantic(GRID, MASK),
    "branch-insensitive": lambda seed: 0.75 * heads.local(GRID, 1.2) + 0.25 * heads.far(GRID),
    "global": lambda seed: heads.far(GRID, seed),
    "mixed": lambda seed: 0.75 * heads.local(GRID, 1.2) + 0.25 * heads.far(GRID, seed),
}


def built(step, branch, sample, layer):
    seed = 100 * step + 10 * sample + (branch == "uncond")
    return np.stack([make(seed) for make in BUILT.values()])


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / "run"
    run = with_maps(folder, built, grid=GRID, samples=2, picture=lambda sample: picture())
    return head_kinds(run)


def test_every_kind_is_found_where_it_was_built(kinds):
    assert kinds["called"].values[0].tolist() == list(BUILT)
    assert kinds["kind"].values.tolist() == [kind.name for kind in KINDS]


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS])
def test_a_rule_holds_where_it_should_and_nowhere_else(kinds, kind):
    also = {  # heads that are of several kinds
        "diffuse": {"dead"},
        "global": {"dead", "diffuse", "sink", "semantic", "row", "column"},
        "branch-insensitive": set(BUILT) - {"diffuse", "global", "mixed"},
        "local": {"diagonal"},
    }
    holds = kinds["holds"].sel(kind=kind).values[0]
    assert not np.isnan(holds).any()
    found = {name for name, value in zip(BUILT, holds, strict=True) if value == 1}
    assert kind in found
    assert found - {kind} <= also.get(kind, set())


def test_rules_are_said_in_words(kinds):
    assert all(len(rule) > 15 for rule in kinds["rule"].values)
    assert set(kinds["missing"].values) == {""}


def test_without_maps_some_kinds_are_told_and_the_others_say_what_is_missing(tmp_path):
    run = with_maps(tmp_path / "run", built, grid=GRID, qk_steps=())
    found = head_kinds(run)
    told = {"dead", "sink", "diffuse", "local", "global"}
    missing = dict(zip(found["kind"].values, found["missing"].values, strict=True))
    assert {kind for kind, text in missing.items() if not text} == told
    assert "--qk-steps" in missing["row"] and "--qk-steps" in missing["branch-insensitive"]
    assert np.isnan(found["holds"].sel(kind="row")).all()
    names = dict(zip(BUILT, found["called"].values[0], strict=True))
    assert all(names[kind] == kind for kind in told)


def test_without_guidance_no_head_is_called_branch_insensitive(tmp_path):
    run = with_maps(tmp_path / "run", built, grid=GRID, branches=lambda step: ("cond",))
    found = head_kinds(run)
    assert "--cfg-scale" in str(found["missing"].sel(kind="branch-insensitive").item())
    assert "branch-insensitive" not in found["called"].values


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (2, 2)])
def test_small_grids_have_no_rows_and_no_sinks_by_accident(tmp_path, grid):
    run = with_maps(tmp_path / "run", lambda *p: heads.far(grid, keys=1)[None], grid=grid, steps=1)
    assert head_kinds(run)["called"].values[0, 0] not in {"row", "column", "dead", "diffuse"}
    even = with_maps(tmp_path / "even", lambda *p: heads.even(grid)[None], grid=grid, steps=1)
    assert head_kinds(even)["called"].values[0, 0] in {"dead", "branch-insensitive"}


def test_without_statistics_it_says_so(tmp_path):
    with pytest.raises(BadRequest, match="--attention-debug"):
        head_kinds(record(tmp_path / "run", layers=1, steps=1, kept=False))
