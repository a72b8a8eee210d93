"""Every exception ditscope raises on purpose, and the exit code each one means.

    DitscopeError                 1   (our bug, if it ever surfaces bare)
    ├── BadInput                  3   something the user gave us is not what it should be
    │   ├── BadCheckpoint         3
    │   ├── BadDataset            3
    │   ├── BadRun                3
    │   ├── BadConfig             2
    │   └── BadRequest            2   an argument of a command or call
    ├── NothingWatched            3   census and run disagree, or there is no attention to see
    ├── ResourceError             4   disk, memory, port, device, missing extra
    └── NumericalError            5   NaN or Inf where numbers were expected

130 (SIGINT), 141 (nobody reads our output) and 143 (SIGTERM) are the shell's own. A message says
the file, the field, what was found, what was expected and what to do; text that came from outside
is escaped and cut.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable

INSTALLED_AS = {
    "PIL": "pillow",
    "google_crc32c": "google-crc32c",
    "imageio": "'imageio[ffmpeg]'",
}
"""Packages whose name for `pip` is not the one they are imported by."""

MAX_FOREIGN_TEXT = 200
MAX_LISTED = 10

EXIT_OK, EXIT_BUG, EXIT_USAGE, EXIT_BAD_INPUT, EXIT_RESOURCE, EXIT_NUMERICAL = range(6)
EXIT_SIGINT, EXIT_SIGPIPE, EXIT_SIGTERM = 130, 141, 143


def foreign(text: object, limit: int = MAX_FOREIGN_TEXT) -> str:
    """Text from outside, safe to show: control and bidi characters escaped, cut at `limit`."""
    shown = "".join(
        character if unicodedata.category(character)[0] != "C" else f"\\u{ord(character):04x}"
        for character in str(text)
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def listed(items: Iterable[object], limit: int = MAX_LISTED) -> str:
    """The first `limit` items, escaped, and how many more there are."""
    shown = [foreign(item) for item in items]
    tail = f" … and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + tail


class DitscopeError(Exception):
    """Base of all typed errors. `problem`: what was found; the keywords: where, and what to do."""

    exit_code = EXIT_BUG

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        field: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else foreign(os.fspath(file))
        self.field = None if field is None else foreign(field)
        self.expected = expected
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.field) if part)
        text = f"{where}: {self.problem}" if where else self.problem
        if self.expected:
            text += f"; expected {self.expected}"
        if self.fix:
            text += f"\n  {self.fix}"
        return text

    def to_dict(self) -> dict[str, object]:
        """The error as plain data, for `--json`."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "file": self.file,
            "field": self.field,
            "problem": self.problem,
            "expected": self.expected,
            "fix": self.fix,
        }


class BadInput(DitscopeError):
    """Something given to ditscope is not what it should be."""

    exit_code = EXIT_BAD_INPUT


class BadCheckpoint(BadInput):
    """A weight file that is damaged, hostile, or for another model."""


class BadDataset(BadInput):
    """Pictures or latents that cannot be read."""


class BadRun(BadInput):
    """A run directory that is incomplete, damaged, or of an unknown version."""


class BadConfig(BadInput):
    """A configuration value that is unknown, of the wrong type, or out of range."""

    exit_code = EXIT_USAGE


class BadRequest(BadInput):
    """An argument of a command or a call that cannot be served."""

    exit_code = EXIT_USAGE


class NothingWatched(DitscopeError):
    """No attention call was seen, or not the ones the census expects."""

    exit_code = EXIT_BAD_INPUT


class ResourceError(DitscopeError):
    """Disk, memory, port, device or an optional package is missing."""

    exit_code = EXIT_RESOURCE


def missing_package(reason: ModuleNotFoundError, wanted_by: str) -> ResourceError:
    """The typed error for a package that is not installed. Raises `reason` if it is one of ours."""
    package = (reason.name or "").split(".")[0]
    if package in ("", "ditscope"):
        raise reason
    return ResourceError(
        f"{wanted_by} needs {foreign(package)}, which is not installed",
        fix=f"pip install {INSTALLED_AS.get(package, foreign(package))}",
    )


class NumericalError(DitscopeError):
    """NaN or Inf where finite numbers were expected."""

    exit_code = EXIT_NUMERICAL
