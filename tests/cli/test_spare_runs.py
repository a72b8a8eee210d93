"""Runs with as little as there can be: every figure, analysis and judgement, or what to record."""

import json

import pytest
import xarray
from PIL import Image

from ditscope.analysis.claims import usual_claims
from ditscope.analysis.class_reference import against_others
from ditscope.analysis.compare import compare
from ditscope.analysis.continuity import continuity_along, continuity_between
from ditscope.analysis.diagnose.schema import DiagnosisRecord
from ditscope.analysis.head_kinds import head_kinds
from ditscope.analysis.layers import layer_profile
from ditscope.analysis.map_difference import map_difference
from ditscope.analysis.map_measures import map_measures
from ditscope.analysis.mass_flow import mass_flow
from ditscope.analysis.parts import find_parts
from ditscope.analysis.phases import phases
from ditscope.analysis.received import received_maps
from ditscope.analysis.rollout import rollout
from ditscope.analysis.steps import step_curves
from ditscope.analysis.symmetry import symmetry
from ditscope.cli.figures import Kind
from ditscope.errors import BadRequest
from ditscope.runs.reader import open_run
from tests.analysis.recorded import record
from tests.runs import toy

ALONE = {"samples": 1, "branches": lambda step: toy.COND}
RUNS = {
    "one step": {"steps": 1},
    "one picture, no guidance": ALONE,
    "one of everything": {"steps": 1, "layers": 1, "heads": 1, **ALONE},
    "wide": {"grid": (5, 12)},
    "tall": {"grid": (9, 6)},
    "no maps": {"qk_steps": ()},
    "no statistics": {"kept": False},
    "neither": {"steps": 1, "qk_steps": (), "kept": False, **ALONE},
}
MAPS, STATISTICS = "--attention-debug --qk-steps 5", "ditscope sample --attention-debug"
OF_STATISTICS = {"depth", "differences", "heads", "kinds", "phases", "steps"}
OF_A_HEAD = {"film", "head", "matrix", "overlay", "timesteps"}  # that statistics choose
OF_MAPS = {"continuity", "flow", "layers", "map-differences", "parts", "received", "relevance"}
OF_MAPS |= {"symmetry"}
TWO_CLASSES = {"differences", "map-differences"}
BOXES = (0, 0, 2, 2), (3, 4, 5, 6)
ANALYSES = (
    ("steps", step_curves),
    ("depth", layer_profile),
    ("phases", phases),
    ("kinds", head_kinds),
    ("differences", lambda run: compare(run, run)),
    ("map-differences", lambda run: map_difference(run, run)),
    ("parts", find_parts),
    ("received", received_maps),
    ("received", map_measures),
    ("symmetry", symmetry),
    ("flow", lambda run: mass_flow(run, {"box": BOXES[0]})),
    ("relevance", rollout),
    ("continuity", lambda run: continuity_between(run, *BOXES)),
    ("continuity", lambda run: continuity_along(run, [(0, 0), (1, 1)])),
)
"""Each with a figure that wants the same of a run."""


@pytest.fixture(scope="module", params=RUNS)
def spare(request, tmp_path_factory):
    """What is spare about a run, and its folder."""
    return request.param, str(
        record(tmp_path_factory.mktemp("spare") / "run", **RUNS[request.param]).path
    )


def missing(kind, spare):
    """What the error of a figure, or of its analysis, must say; None: it is drawn."""
    no_maps, no_statistics = spare in ("no maps", "neither"), spare in ("no statistics", "neither")
    if no_statistics and kind in OF_STATISTICS | OF_A_HEAD:
        return STATISTICS
    if no_maps and kind in OF_MAPS | OF_A_HEAD:
        return MAPS
    return None


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.finding])
def test_every_figure(cli, spare, tmp_path, kind):
    name, path = spare
    options = [word for box in BOXES for word in ("--region", ",".join(map(str, box)))]
    options = options if kind is Kind.continuity else []
    if kind in TWO_CLASSES:
        options = ["--other", path]
    target = tmp_path / ("f.gif" if kind is Kind.film else "f.png")
    code, out, err = cli("plot", kind, path, "-o", str(target), "--dpi", "20", *options)
    expected = missing(kind, name)
    if expected is None:
        assert (code, err, out.strip()) == (0, "", str(target))
        with Image.open(target) as image:
            assert min(image.size) > 20
    else:
        assert (code, out) == (2, "") and expected in err
        assert not target.exists()


def test_every_analysis(spare):
    name, run = spare[0], open_run(spare[1])
    for kind, analyse in ANALYSES:
        expected = missing(kind, name)
        if expected is None:
            assert isinstance(analyse(run), xarray.Dataset | xarray.DataArray), kind
        else:
            with pytest.raises(BadRequest) as caught:
                analyse(run)
            assert expected in (caught.value.fix or ""), kind


def test_what_cannot_be_told_is_said(spare):
    name, run = spare[0], open_run(spare[1])
    if missing("steps", name) is None:
        claims = usual_claims(run)
        unknown = (claims["verdict"] == "cannot be told").values
        assert (claims["missing"].values[unknown] != "").all()
        assert (claims["missing"].values[~unknown] == "").all()
        kinds = head_kinds(run)
        untold = kinds["holds"].isnull().all(["layer", "head"]).values
        assert (kinds["missing"].values[untold] != "").all()
    with pytest.raises(BadRequest) as caught:
        against_others(run, "class 0")
    assert "ditscope sample --attention-debug" in (caught.value.fix or "")


def test_diagnosis_and_comparison(cli, spare):
    name, path = spare
    code, out, err = cli("diagnose", path, "--json")
    if name == "neither":
        assert code == 2 and STATISTICS in err
    else:
        found = DiagnosisRecord.model_validate(json.loads(out))
        assert code == (0 if found.healthy else 1) and err == ""
        words = cli("diagnose", path)
        assert words.code == code and "Traceback" not in words.err
        assert all(why for why in found.skipped.values())
    compared = cli("compare", path, path)
    if missing("differences", name) is None:
        assert compared.code == 0
        assert "record with --num-samples 8" in compared.out
    else:
        assert compared.code == 2 and STATISTICS in compared.err
