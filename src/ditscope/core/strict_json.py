"""JSON from files that someone else may have written: bounded, unambiguous, finite.

The standard parser keeps the last of two equal keys, reads NaN and Infinity, and dies of deep
nesting. Here each of these is a typed error that names the file.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import stat
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from ditscope.errors import BadConfig, BadInput, foreign

MAX_CONFIG_BYTES = 1_000_000

Model = TypeVar("Model", bound=BaseModel)


class _Refused(Exception):
    """Why the text is not acceptable; becomes the caller's error type."""


def parse(
    data: bytes, *, file: str | os.PathLike[str], error: type[BadInput] = BadConfig
) -> dict[str, object]:
    """The JSON object in `data` (UTF-8, with or without a byte order mark).

    Raises:
        error: not UTF-8, not JSON, not an object, a key twice in one object, NaN or an infinite
            number, or nesting deeper than the parser can follow. Names `file`.
    """
    try:
        tree = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as reason:
        raise error(f"not UTF-8 text (byte {reason.start})", file=file) from None
    except json.JSONDecodeError as reason:
        place = f"line {reason.lineno}, column {reason.colno}"
        raise error(f"not JSON: {foreign(reason.msg)} at {place}", file=file) from None
    except RecursionError:
        raise error("JSON nested too deep", file=file) from None
    except _Refused as reason:
        raise error(str(reason), file=file) from None
    except ValueError:  # the interpreter's limit against quadratic conversion
        raise error("an integer of thousands of digits", file=file) from None
    if not isinstance(tree, dict):
        raise error(f"JSON holds a {type(tree).__name__}", file=file, expected="an object")
    return tree


def read(
    path: str | os.PathLike[str],
    *,
    error: type[BadInput] = BadConfig,
    max_bytes: int = MAX_CONFIG_BYTES,
) -> dict[str, object]:
    """The JSON object in the file `path`, refused unread when larger than `max_bytes`.

    Raises:
        error: as `parse`, or the file is missing, not a regular file, empty or too large.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would keep us waiting
            raise error("not a regular file", file=path)
        with Path(path).open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as reason:
        raise error(f"cannot be read: {reason.strerror}", file=path) from None
    if not data:
        raise error("empty file", file=path)
    if len(data) > max_bytes:
        raise error(f"larger than {max_bytes:,} bytes", file=path)
    return parse(data, file=path, error=error)


def validated(
    model: type[Model],
    tree: object,
    *,
    file: str | os.PathLike[str] | None = None,
    field: str = "",
    error: type[BadInput] = BadConfig,
) -> Model:
    """`tree` as a `model`, checked strictly: no text for a number, no number for a truth value.

    Raises:
        error: with the path of the first wrong field (below `field`) and how many more are wrong.
    """
    try:
        return model.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as reason:
        raise _first_problem(model, reason, file, field, error) from None
    except BadInput as reason:  # a model that reports its own fields
        place = ".".join(part for part in (field, reason.field) if part)
        raise error(
            reason.problem, file=file, field=place or None, expected=reason.expected, fix=reason.fix
        ) from None


def _first_problem(
    model: type[BaseModel],
    reason: ValidationError,
    file: str | os.PathLike[str] | None,
    field: str,
    error: type[BadInput],
) -> BadInput:
    problems = reason.errors(include_url=False, include_context=False)
    first = problems[0]
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        text = "unknown field"
        near = difflib.get_close_matches(location[-1], model.model_fields, n=1)
        fix = f"did you mean {near[0]}?" if near and len(location) == 1 else None
    else:
        found = first["input"]
        shown = "" if isinstance(found, dict | list) else f", found {foreign(repr(found))}"
        text = first["msg"].removeprefix("Value error, ") + shown
        fix = None
    more = f" (and {len(problems) - 1} more wrong)" if len(problems) > 1 else ""
    place = ".".join(part for part in (field, *location) if part)
    return error(text + more, file=file, field=place or None, fix=fix)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    tree: dict[str, object] = {}
    for key, value in pairs:
        if key in tree:
            raise _Refused(f"key {foreign(repr(key))} appears twice")
        tree[key] = value
    return tree


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a number JSON may hold")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"number {foreign(text)} is out of range")
    return value
