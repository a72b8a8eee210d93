"""`ditscope plot`: every kind, every format, and what is refused before anything is read."""

import json

import pytest
from PIL import Image

from ditscope.cli.figures import TAKES, Kind, drawn
from ditscope.runs.reader import open_run
from tests.analysis.recorded import record
from tests.plot.drawn import words


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(record(tmp_path_factory.mktemp("plot") / "run").path)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_is_drawn(cli, path, tmp_path, kind):
    more = {
        Kind.differences: ["--class-a", "class 0", "--class-b", "class 1"],
        Kind.map_differences: ["--class-a", "class 0", "--class-b", "class 1"],
        Kind.continuity: ["--region", "0,0,2,2", "--region", "4,5,6,8"],
    }.get(kind, [])
    target = tmp_path / (f"{kind}.gif" if kind is Kind.film else f"{kind}.png")
    code, out, err = cli("plot", kind, path, "-o", str(target), *more)
    assert (code, err, out.strip()) == (0, "", str(target))
    with Image.open(target) as image:
        assert min(image.size) > 100


def test_options_reach_the_figure(cli, path, tmp_path):
    target = str(tmp_path / "f.svg")
    for arguments in (
        ("steps", "--layer", "1", "--layer", "2", "--metric", "entropy"),
        (
            "head",
            "--layer",
            "2",
            "--head",
            "1",
            "--step",
            "3",
            "--query",
            "1",
            "6",
            "--sample",
            "0",
        ),
        ("layers", "--head", "mean", "--layer", "0", "--layer", "2"),
        ("timesteps", "--step", "1", "--step", "3", "--branch", "uncond"),
        ("differences", "--other", path),
        ("map-differences", "--other", path),
        ("flow", "--region", "thing=2,3,5,6", "--region", "sky=0,0,2,8", "--layer", "1"),
        ("symmetry", "--region", "2,0,5,2", "--axis", "vertical", "--at", "3", "--step", "1"),
        ("parts", "--parts", "3", "--layer", "2", "--step", "2", "--step", "3"),
        ("received", "--head", "mean", "--sample", "1", "--branch", "uncond"),
        ("relevance", "--query", "3", "4", "--step", "2"),
        ("matrix", "--layer", "1", "--head", "mean"),
    ):
        assert cli("plot", arguments[0], path, "-o", target, *arguments[1:]).code == 0
    outcome = cli("plot", "heads", path, "-o", target, "--title", "Mine", "--json")
    assert json.loads(outcome.out) == {"file": target}


def test_two_runs_are_called_by_their_folders(path, tmp_path):
    other = record(tmp_path / "second").path
    for kind in (Kind.differences, Kind.map_differences):
        figure = drawn(kind, open_run(path), None, {"other": other})
        assert "second less run" in words(figure)
        figure = drawn(kind, open_run(path), None, {"other": other, "class_a": "class 0"})
        assert "second less class 0" in words(figure)


def test_dpi_is_that_of_the_picture(cli, path, tmp_path):
    widths = []
    for dpi in ("72", "144"):
        target = tmp_path / f"{dpi}.png"
        cli("plot", "heads", path, "-o", str(target), "--dpi", dpi)
        with Image.open(target) as image:
            widths.append(image.size[0])
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("kinds", "--layer", "1"), "`kinds` does not take --layer; expected --branch"),
        (("pictures", "--step", "1"), "`pictures` does not take --step"),
        (("head", "--layer", "1", "--layer", "2"), "`head` takes one --layer"),
        (("head", "--head", "third"), "head: 'third'; expected a number or mean"),
        (("head", "--layer", "9"), "layer: 9 is not in this run"),
        (("heads", "--metric", "gini"), "metric: 'gini' is not in this run"),
        (("cinema",), "cinema"),
        (("differences",), "other: compares a run with itself"),
        (("map-differences",), "other: compares a run with itself"),
        (("continuity", "--region", "0,0,1,1"), "region: found 1; expected two"),
        (("flow", "--region", "a=0,0,1"), "expected NAME=TOP,LEFT,BOTTOM,RIGHT"),
        (("symmetry", "--at", "1.3"), "at: 1.3; expected a multiple of a half"),
        (("symmetry", "--axis", "slanted"), "axis: 'slanted'"),
    ],
)
def test_what_cannot_be_drawn_is_a_usage_error(cli, path, tmp_path, arguments, told):
    target = tmp_path / "f.png"
    outcome = cli("plot", arguments[0], path, "-o", str(target), *arguments[1:])
    assert (outcome.code, outcome.out) == (2, "") and told in outcome.err
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("f.png", (), "a name ending in .gif, .webp, .apng, .mp4"),
        ("f.gif", ("--rate", "0"), "rate: found 0; expected 0.5 to 60 a second"),
    ],
)
def test_films_have_formats_of_their_own(cli, tmp_path, name, options, told):
    outcome = cli("plot", "film", str(tmp_path / "none"), "-o", str(tmp_path / name), *options)
    assert outcome.code == 2 and told in outcome.err


def test_the_format_is_looked_at_first(cli, tmp_path):
    outcome = cli("plot", "heads", str(tmp_path / "none"), "-o", str(tmp_path / "f.jpg"))
    assert outcome.code == 2 and "a name ending in .png, .svg or .pdf" in outcome.err


def test_every_option_of_a_kind_is_an_option_of_the_command(cli):
    options = cli("plot", "--help").out
    assert {f"--{name.replace('_', '-')}" for names in TAKES.values() for name in names} <= set(
        options.split()
    )
