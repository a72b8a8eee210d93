"""`ditscope compare`: what is printed, for people and for machines."""

import json

import pytest

from tests.analysis.test_class_reference import run_of as class_run
from tests.analysis.test_compare import noisy, pair, plant, run_of


@pytest.fixture
def runs(tmp_path):
    a, b = pair(tmp_path, change=plant)
    return str(a.path), str(b.path)


def test_the_largest_difference_comes_first(cli, runs):
    code, out, err = cli("compare", *runs, "--top", "3")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["what", "noise", "layer", "head"]
    assert lines[1].split()[0] == "entropy" and lines[1].split()[2:4] == ["1", "2"]
    assert len(lines) == 1 + 3 + 1 + 2
    assert "2 of 48 differences are beyond chance" in out
    assert "A: 8 samples, B: 8, independent. Layers by number." in out


def test_json_holds_the_same(cli, runs):
    found = json.loads(cli("compare", *runs, "--json").out)
    assert (found["beyond_chance"], found["comparisons"], found["samples"]) == (2, 48, [8, 8])
    assert len(found["most_changed"]) == 10
    first = found["most_changed"][0]
    assert (first["metric"], first["layer"], first["head"]) == ("entropy", 1, 2)
    assert first["p_adjusted"] <= 0.05 and first["low"] < first["difference"] < first["high"]


def test_one_sample_says_what_to_record(cli, tmp_path):
    a = run_of(tmp_path / "a", noisy(1, 0))
    b = run_of(tmp_path / "b", noisy(1, 1))
    outcome = cli("compare", str(a.path), str(b.path))
    assert outcome.code == 0 and "record with --num-samples 8" in outcome.out
    found = json.loads(cli("compare", str(a.path), str(b.path), "--json").out)
    assert found["most_changed"][0]["p"] is None


def test_what_is_not_there_is_a_typed_error(cli, runs, tmp_path):
    assert cli("compare", runs[0], str(tmp_path / "none")).code == 3
    outcome = cli("compare", *runs, "--class-a", "unicorn")
    assert (outcome.code, outcome.out) == (2, "") and "no class 'unicorn'" in outcome.err


def test_two_steps_of_one_run(cli, runs):
    found = json.loads(
        cli("compare", runs[0], runs[0], "--step-a", "0", "--step-b", "1", "--json").out
    )
    assert found["design"] == "paired by seed"
    assert len({row["noise"] for row in found["most_changed"]}) == 1


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return str(class_run(tmp_path_factory.mktemp("others") / "run", odd=1.0)[0].path)


def test_one_class_against_all_others(cli, classes):
    options = ("--class-a", "cow", "--others", "--top", "2")
    code, out, err = cli("compare", classes, classes, *options)
    assert (code, err) == (0, "")
    first = out.splitlines()[1].split()
    assert first[0] == "entropy" and first[2:4] == ["1", "1"]
    assert "cow against 5 other classes" in out
    found = json.loads(cli("compare", classes, classes, *options, "--json").out)
    assert found["others"] == ["ant", "bee", "dog", "eel", "fox"]
    assert abs(found["farthest_out"][0]["z"]) >= abs(found["farthest_out"][1]["z"])
    assert found["farthest_out"][0]["p_adjusted"] <= 0.05


@pytest.mark.parametrize(
    "options", [(), ("--class-a", "cow", "--class-b", "ant"), ("--class-a", "cow", "--step-a", "1")]
)
def test_others_need_one_class_and_nothing_else(cli, classes, options):
    outcome = cli("compare", classes, classes, "--others", *options)
    assert outcome.code == 2 and "--class-a NAME, and neither" in outcome.err
