"""A training recipe on disk: a TOML file that holds the fields of `TrainConfig`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from ditscope.core import strict_json
from ditscope.core.strict_json import MAX_CONFIG_BYTES
from ditscope.errors import BadConfig, foreign
from ditscope.train.config import TrainConfig


def read_recipe(file: Path, changes: dict[str, object]) -> TrainConfig:
    """The recipe in `file`, with top-level fields replaced by `changes`.

    Raises:
        BadConfig: no such file, too large, not UTF-8, not TOML, an unknown field (with the nearest
            name), or a value of the wrong type or out of range.
    """
    return strict_json.validated(TrainConfig, {**_read_toml(file), **changes}, file=file)


def _read_toml(file: Path) -> dict[str, object]:
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise BadConfig(f"is larger than {MAX_CONFIG_BYTES:,} bytes", file=file)
        text = file.read_bytes().decode("utf-8-sig")
        tree = tomllib.loads(text)
    except OSError as reason:
        raise BadConfig(f"cannot be read: {reason.strerror}", file=file) from None
    except UnicodeDecodeError:
        raise BadConfig("is not UTF-8", file=file, expected="TOML text") from None
    except tomllib.TOMLDecodeError as reason:
        raise BadConfig(f"is not TOML: {foreign(reason)}", file=file) from None
    except RecursionError:
        raise BadConfig("is nested too deeply", file=file) from None
    for name, value in tree.items():
        if not isinstance(value, str | int | float | bool | list | dict):
            raise BadConfig("is a date or time", file=file, field=name)
    return tree
