"""`ditscope compare`: what is printed, for people and for machines."""

import json

import pytest

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
