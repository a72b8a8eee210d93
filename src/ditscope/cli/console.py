"""What every command prints with: results to stdout, everything else to stderr.

Text is never read as markup, so a class or file name shows as it is. Colours and bars follow the
terminal: none for a pipe, `NO_COLOR` or `TERM=dumb`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

from ditscope.errors import DitscopeError, foreign

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

MAX_LINE = 2000
UNFOLDED = 10_000
"""Width of a table that another program reads: one line per row."""


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError that rich is handling here

    return PlainConsole(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)


def results() -> Console:
    """The console on stdout: what the user asked for, and nothing else."""
    return _console(stderr=False)


def messages() -> Console:
    """The console on stderr: progress, warnings, errors."""
    return _console(stderr=True)


def print_json(data: object) -> None:
    """Print `data` to stdout as one JSON document. Raises ValueError for NaN and Inf."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under column names to stdout; numbers are set flush right."""
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(foreign(cell)) for cell in row))
    console = results()
    if not console.is_terminal:
        console.width = UNFOLDED
    console.print(table)


def progress() -> Progress:
    """A bar on stderr with count and time left; silent where there is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = messages()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def print_error(error: DitscopeError, *, as_json: bool) -> None:
    """Print one error to stderr, as a line for people or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(error.to_dict()), err=True)
        return
    from rich.text import Text

    text = "\n".join(foreign(line, MAX_LINE) for line in str(error).split("\n"))
    messages().print(Text.assemble(("error: ", "bold red"), text))
