"""Files and functions stay small enough to be read at once."""

import ast

from tests.contracts.tree import ROOT, parsed, python_files

MAX_FILE = {"src": 400, "tests": 600, "benchmarks": 400, "examples": 59}
MAX_FUNCTION = 60
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ALL = python_files(*MAX_FILE)


def test_files_are_short():
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL
    }
    long = {path: length for path, length in lengths.items() if length > MAX_FILE[path.parts[0]]}
    assert long == {}


def test_functions_are_short():
    """Lines of the body. A signature may be long: a command has a line or two per option."""
    lengths = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.body[0].lineno + 1
        for path in ALL
        for node in ast.walk(parsed(path))
        if isinstance(node, FUNCTIONS)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


def test_files_are_named_for_what_they_hold():
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [path for path in python_files("src") if path.stem in vague] == []
