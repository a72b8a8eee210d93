"""Every way in which a command can fail, and what the user sees: a message and an exit code."""

import errno
import json
from typing import Annotated

import pytest
import typer

from ditscope import errors
from ditscope.cli.main import run
from ditscope.errors import BadRun, DitscopeError, NumericalError, ResourceError


class OutOfMemoryError(RuntimeError):
    """Stands for torch's class of this name."""


FAILURES = {
    "typed": (
        BadRun("no such step", file="runs/x", field="step", expected="0 to 9", fix="use 9"),
        3,
    ),
    "resource": (ResourceError("port 8000 is taken"), 4),
    "numerical": (NumericalError("loss is NaN"), 5),
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "out/x.png"), 4),
    "read-only": (PermissionError(errno.EACCES, "Permission denied", "out"), 4),
    "disk error on a descriptor": (OSError(errno.EIO, "Input/output error", 7), 4),
    "memory": (MemoryError(), 4),
    "gpu memory": (OutOfMemoryError("CUDA out of memory"), 4),
    "package": (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 4),
    "our own module": (ModuleNotFoundError("No module named", name="ditscope.x"), 1),
    "end of file": (EOFError("ran out"), 1),
    "bug": (KeyError("blocks.3"), 1),
    "exit": (typer.Exit(7), 7),
    "interrupt": (KeyboardInterrupt(), 130),
}


def failing(error):
    """An application whose command `go` raises `error`, and whose command `fine` does not."""
    application = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @application.command()
    def go(steps: int = 1, json: Annotated[bool, typer.Option("--json")] = False):
        """Raise."""
        raise error

    @application.command()
    def fine():
        """Do nothing."""

    return application


@pytest.mark.parametrize("name", FAILURES)
def test_exit_code_and_no_traceback(name, capsys):
    error, code = FAILURES[name]
    assert run(failing(error), ["go"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ") or code in (7, 130)


def test_a_missing_package_is_named_as_pip_knows_it(capsys):
    run(failing(ModuleNotFoundError("No module named 'PIL'", name="PIL.Image")), ["go"])
    assert capsys.readouterr().err == (
        "error: this command needs PIL, which is not installed\n  pip install pillow\n"
    )


def test_every_typed_error_keeps_its_code(capsys):
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, DitscopeError)
    ]
    assert len(classes) >= 9
    for each in classes:
        assert run(failing(each("wrong")), ["go"]) == each.exit_code
        assert capsys.readouterr().err == "error: wrong\n"


def test_message_names_file_field_found_expected_and_fix(capsys):
    run(failing(FAILURES["typed"][0]), ["go"])
    assert capsys.readouterr().err == (
        "error: runs/x: step: no such step; expected 0 to 9\n  use 9\n"
    )


def test_json_error_is_one_json_object_on_stderr(capsys):
    assert run(failing(FAILURES["typed"][0]), ["go", "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == FAILURES["typed"][0].to_dict()


@pytest.mark.parametrize("arguments", [["go", "--json", "--what"], ["og", "--json"]])
def test_usage_error_is_json_too(arguments, capsys):
    assert run(failing(None), arguments) == 2
    assert json.loads(capsys.readouterr().err)["exit_code"] == 2


@pytest.mark.parametrize("place", [["--debug", "go"], ["go", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(place, capsys):
    assert run(failing(FAILURES["bug"][0]), place) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "error: this is a bug in ditscope: KeyError: 'blocks.3'" in err


def test_bug_says_how_to_report_it(capsys):
    run(failing(FAILURES["bug"][0]), ["go", "--steps", "3"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: this is a bug in ditscope: KeyError: 'blocks.3'"
    assert "`ditscope --debug go --steps 3`" in lines[1]
    assert "`ditscope info`" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["fime"], "fine"),
        (["go", "--step", "3"], "--steps"),
        (["go", "--steps", "three"], "--steps"),
        (["go", "--steps"], "--steps"),
        (["go", "surplus"], "surplus"),
        (["--verison"], "No such option"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_usage_error_says_what_is_close(arguments, hint, capsys):
    assert run(failing(None), arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert hint in err
    assert "--help`" in err


def test_foreign_text_is_shown_and_not_obeyed(capsys):
    hostile = "[bold red]x[/] \x1b]0;pwn\x07 \u202egnp.exe \udcff :smile:"
    run(failing(DitscopeError(hostile)), ["go"])
    err = capsys.readouterr().err
    assert "[bold red]x[/] \\u001b]0;pwn\\u0007 \\u202egnp.exe \\udcff :smile:" in err
    assert run(failing(None), [hostile]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_long_message_is_cut(capsys):
    run(failing(ValueError("x" * 100_000)), ["go"])
    assert len(capsys.readouterr().err) < 5000


def test_fine_is_zero_and_quiet(capsys):
    assert run(failing(None), ["fine"]) == 0
    assert capsys.readouterr() == ("", "")
