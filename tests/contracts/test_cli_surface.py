"""The command line is a promise: it changes on purpose or not at all."""

import json

import pytest

from tests.contracts.cli_surface import FROZEN, surface

SURFACE = surface()


def test_options_are_the_frozen_ones():
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    assert frozen == SURFACE, (
        "if the change is meant: .venv/bin/python -m tests.contracts.cli_surface"
    )


@pytest.mark.parametrize("command", [name for name in SURFACE if name != "ditscope"])
def test_every_command_explains_itself(cli, command):
    code, out, err = cli(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: ditscope {command} ")
    assert len(out.splitlines()[2].strip()) > 20  # what it does
    unexplained = [option for option in SURFACE[command] if option not in out and option[0] == "-"]
    assert unexplained == []


def test_help_lists_every_command(cli):
    _, out, _ = cli("--help")
    listed = {
        line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()
    }
    assert set(SURFACE) - {"ditscope"} <= listed
