"""JSON that others wrote: what the standard parser lets through is refused here."""

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from ditscope.core import strict_json
from ditscope.errors import BadCheckpoint, BadConfig


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "holds a list; expected an object"),
        (b'"text"', "holds a str"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b'{"x": {"a\\u0007": 1, "a\\u0007": 2}}', "appears twice"),
        (b'{"lr": NaN}', "NaN is not a number"),
        (b'{"lr": -Infinity}', "-Infinity is not a number"),
        (b'{"lr": 1e999}', "number 1e999 is out of range"),
        (b'{"n": ' + b"9" * 5000 + b"}", "integer of thousands of digits"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"a: !!python/object/apply:os.system [id]", "not JSON"),
    ],
)
def test_ambiguous_or_hostile_text_is_refused(text, problem):
    with pytest.raises(BadCheckpoint) as caught:
        strict_json.parse(text, file="some.json", error=BadCheckpoint)
    assert "some.json: " in str(caught.value)
    assert problem in str(caught.value)
    assert "\u0007" not in str(caught.value)


def test_a_byte_order_mark_and_crlf_are_no_problem():
    assert strict_json.parse(b'\xef\xbb\xbf{"a":\r\n 1}\r\n', file="f") == {"a": 1}


def test_what_looks_like_an_expansion_stays_text():
    assert strict_json.parse(b'{"a": "${oc.env:HOME}"}', file="f") == {"a": "${oc.env:HOME}"}


finite = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | finite | st.text()
trees = st.recursive(leaves, lambda s: st.lists(s) | st.dictionaries(st.text(), s), max_leaves=8)


@given(st.dictionaries(st.text(), trees))
def test_what_json_writes_is_read_back(tree):
    assert strict_json.parse(json.dumps(tree).encode(), file="f") == tree


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_with_a_typed_error(data):
    try:
        tree = strict_json.parse(data, file="f")
    except BadConfig:
        return
    assert isinstance(tree, dict)


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path):
    empty, large = tmp_path / "empty.json", tmp_path / "large.json"
    empty.touch()
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    large.write_bytes(b"{" + b" " * 100 + b"}")
    for path, problem in (
        (tmp_path / "none.json", "No such file"),
        (tmp_path, "not a regular file"),
        (pipe, "not a regular file"),
        (empty, "empty file"),
        (large, "larger than 50 bytes"),
    ):
        with pytest.raises(BadConfig, match=problem) as caught:
            strict_json.read(path, max_bytes=50)
        assert caught.value.file == str(path)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    steps: int
    size: tuple[int, int] = (1, 1)
    rate: float = 1.0


def test_validation_takes_lists_for_tuples_and_integers_for_floats():
    found = strict_json.validated(Settings, {"steps": 2, "size": [3, 4], "rate": 1})
    assert found == Settings(steps=2, size=(3, 4), rate=1.0)


@pytest.mark.parametrize(
    ("tree", "field", "problem"),
    [
        ({"steps": "8"}, "model.steps", "valid integer, found '8'"),
        ({"steps": True}, "model.steps", "valid integer"),
        ({"steps": 1, "rate": math.nan}, "model.rate", "number"),
        ({"steps": 1, "rat": 2.0}, "model.rat", "unknown field\n  did you mean rate?"),
        ({"steps": 1, "_target_": "os.system"}, "model._target_", "unknown field"),
        ({"size": [1]}, "model.steps", r"required (and 1 more wrong)"),
        ([], "model", "object"),
    ],
)
def test_wrong_fields_are_named(tree, field, problem):
    with pytest.raises(BadConfig) as caught:
        strict_json.validated(Settings, tree, file="some.json", field="model")
    assert (caught.value.file, caught.value.field) == ("some.json", field)
    assert problem in str(caught.value)
