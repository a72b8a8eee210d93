"""TOML files that a user wrote: recipes of trainings and descriptions of networks."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from ditscope.core.strict_json import MAX_CONFIG_BYTES
from ditscope.errors import BadConfig, foreign


def read_toml(file: Path) -> dict[str, object]:
    """The tables of a TOML file, not checked further.

    Raises:
        BadConfig: no such file, too large, not UTF-8, not TOML, or with a date.
    """
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
    try:
        json.dumps(tree)
    except TypeError:
        raise BadConfig(
            "holds a date or time", file=file, expected="numbers, text, tables"
        ) from None
    return tree
