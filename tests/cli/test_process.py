"""The command as a process: signals, closed pipes, poor terminals."""

import os
import signal
import subprocess
import sys

import pytest

posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")

# A command that says when it has begun, works for ever, and cleans up slowly if told to.
LONG = """
import sys, time, typer
from ditscope.cli.main import run
app = typer.Typer()
@app.command()
def work(cleanup: float = 0.0):
    try:
        print("begun", flush=True)
        time.sleep(600)
    finally:
        print("cleaning", flush=True)
        time.sleep(cleanup)
        print("clean", flush=True)
sys.exit(run(app, sys.argv[1:]))
"""

PRINTING = """
import sys, typer
from ditscope.cli.console import print_table, results
from ditscope.cli.main import run
app = typer.Typer()
@app.command()
def work(rich: bool = False):
    for number in range(20_000):
        results().print(number) if rich else print(number)
sys.exit(run(app, sys.argv[1:]))
"""


def started(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ditscope(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "ditscope", *arguments],
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_cleans_up_and_ends(number, code):
    with started(LONG) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("cleaning\nclean\n", code)
    assert "Traceback" not in err


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_does_not_wait(number):
    with started(LONG, "--cleanup", "600") as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", -number)
    assert "Traceback" not in err


@posix
@pytest.mark.parametrize("arguments", [[], ["--rich"]], ids=["print", "rich"])
def test_closed_pipe_is_quiet(arguments):
    with started(PRINTING, *arguments) as process:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_module_and_version():
    done = ditscope("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == b"ditscope"
    assert done.stderr == b""


@pytest.mark.parametrize(
    "environment",
    [
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"TERM": "dumb", "NO_COLOR": "1"},
    ],
    ids=["C", "ascii", "dumb"],
)
def test_poor_terminals_get_plain_text(environment):
    done = ditscope("zeichne-ein-Ü\u202e", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: No such command 'zeichne-ein-")
    assert b"\x1b" not in done.stderr
    assert b"Traceback" not in done.stderr


def test_no_arguments_is_help():
    assert ditscope().stdout == ditscope("--help").stdout


@posix
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_closed_stream_is_no_crash(stream):
    """As a daemon without a terminal would start it: `ditscope --help >&-`."""
    number = {"stdout": 1, "stderr": 2}[stream]
    line = (
        f'exec "{sys.executable}" -m ditscope {"--help" if number == 1 else "nonsense"} {number}>&-'
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=120)
    assert done.returncode == {1: 0, 2: 2}[number]
    assert done.stdout + done.stderr == b""


@posix
def test_reader_of_errors_may_leave():
    line = f'"{sys.executable}" -m ditscope nonsense 2>&1 >&- | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() in ("2", "141")  # 2: it wrote before the reader left
    assert done.stderr == ""
