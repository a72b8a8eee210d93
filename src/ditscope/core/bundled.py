"""The models that come with the package, by name. Readers use it too, so no torch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

BUNDLED = ("emoji",)


def bundled_folder(name: str) -> Path:
    """Where a bundled pipeline is installed."""
    return Path(str(files("ditscope") / "bundled" / name))
