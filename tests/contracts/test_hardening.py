"""docs/hardening.md names a test for every case, and each of those tests exists."""

import ast
import re

import pytest

from tests.contracts.tree import ROOT, parsed, python_files

PAGE = (ROOT / "docs" / "hardening.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([A-Z]\d+) \|.*\| (.+?) \|$", PAGE, re.M)


def named_in(cell):
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cell)


def test_there_are_cases_and_each_has_one_row():
    numbers = [number for number, _ in ROWS]
    assert len(numbers) == len(re.findall(r"^\| [A-Z]\d+ ", PAGE, re.M)) > 0
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("number", "cell"), ROWS, ids=[number for number, _ in ROWS])
def test_the_test_of_a_case_exists(number, cell):
    named = named_in(cell)
    assert named
    for file, function in named:
        functions = {
            n.name for n in ast.walk(parsed(ROOT / file)) if isinstance(n, ast.FunctionDef)
        }
        assert function in functions


def test_cases_named_in_tests_are_on_the_page():
    """A parameter of a test such as `"C6 overlap"` refers to a row."""
    numbers = {number for number, _ in ROWS}
    named = {
        node.value.split()[0]
        for path in python_files("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"[CDFLS]\d{1,2} \w", node.value)
    }
    assert named - numbers == set()
