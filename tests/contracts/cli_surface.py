"""Commands and options of `ditscope`, as data.

`.venv/bin/python -m tests.contracts.cli_surface`, from the root of the repository, writes the list
that test_cli_surface.py compares with. A removed or renamed option breaks somebody's script.
"""

import json
from pathlib import Path

import typer

from ditscope.cli.main import app

FROZEN = Path(__file__).with_name("cli_options.json")


def surface() -> dict[str, list[str]]:
    """Arguments and options of each command; those of `ditscope` itself under its own name."""
    root = typer.main.get_command(app)
    commands = {"ditscope": root, **root.commands}
    return {
        name: sorted(
            spelling
            for parameter in command.params
            for spelling in [*parameter.opts, *parameter.secondary_opts]
        )
        for name, command in sorted(commands.items())
    }


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(surface(), indent=2) + "\n", encoding="utf-8")
