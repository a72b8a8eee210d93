"""The `ditscope` command: the list of commands, and where a failure becomes an exit code.

Nothing heavy is imported here or at the top of a command's file: `ditscope --help` answers in a
blink and without torch.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from ditscope.cli.calibrate import calibrate
from ditscope.cli.compare import compare
from ditscope.cli.console import print_error
from ditscope.cli.convert import convert
from ditscope.cli.demo import demo
from ditscope.cli.diagnose import diagnose
from ditscope.cli.eval import eval_
from ditscope.cli.export import export
from ditscope.cli.extract import extract
from ditscope.cli.info import info
from ditscope.cli.models import models
from ditscope.cli.plot import plot
from ditscope.cli.probe import probe
from ditscope.cli.sample import sample
from ditscope.cli.sample_ddp import sample_ddp
from ditscope.cli.train import train
from ditscope.errors import (
    EXIT_OK,
    EXIT_SIGINT,
    EXIT_SIGPIPE,
    EXIT_SIGTERM,
    BadRequest,
    DitscopeError,
    ResourceError,
    foreign,
    missing_package,
)
from ditscope.version import __version__

RESOURCE_ERRNOS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
}
"""Operating-system errors that are the machine's, not ours."""

app = typer.Typer(
    name="ditscope",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: half the time of the boxed one
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def show_version(wanted: bool) -> None:
    """Print the version and end, before anything else is looked at."""
    if wanted:
        typer.echo(f"ditscope {__version__}")
        raise typer.Exit


@app.callback()
def ditscope(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="With any command: show the traceback of an error.")
    ] = False,
) -> None:
    """Build, train and run Diffusion Transformers, and see what they attend to."""


COMMANDS = (
    demo,
    sample,
    sample_ddp,
    probe,
    extract,
    train,
    export,
    eval_,
    models,
    convert,
    info,
    compare,
    diagnose,
    calibrate,
    plot,
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_").replace("_", "-"))(command)


class Terminated(BaseException):
    """SIGTERM arrived: unwinds the stack, so that cleanups run."""


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGINT and SIGTERM unwind the stack once; the second one ends the process at once."""
    owner = os.getpid()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != owner:  # a forked child must not run its parent's cleanups
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    previous = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def typed(problem: Exception, arguments: Sequence[str]) -> DitscopeError:
    """The failure as one of our own errors: the user's, the machine's, or a bug of ours."""
    if isinstance(problem, DitscopeError):
        return problem
    if isinstance(problem, typer.TyperException):
        context = getattr(problem, "ctx", None)
        command = context.command_path if context else "ditscope"
        return BadRequest(problem.format_message(), fix=f"`{command} --help` shows what it takes")
    if isinstance(problem, OSError) and problem.errno in RESOURCE_ERRNOS:
        place = None if problem.filename is None else str(problem.filename)  # may be a number
        return ResourceError(problem.strerror or str(problem), file=place)
    if isinstance(problem, ModuleNotFoundError) and not (problem.name or "").startswith("ditscope"):
        return missing_package(problem, "this command")
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return ResourceError(
            f"out of memory: {foreign(problem)}", fix="try fewer samples, or a smaller batch"
        )
    again = foreign(shlex.join(["ditscope", "--debug", *arguments]))
    return DitscopeError(
        f"this is a bug in ditscope: {type(problem).__name__}: {foreign(problem)}",
        fix=f"`{again}` shows the traceback; `ditscope info` what else a report needs",
    )


def invoke(application: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command of `application`; its exit code. Raises what the command raises."""
    command = typer.main.get_command(application)
    try:
        with command.make_context("ditscope", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return EXIT_OK


def report(application: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command; its exit code. What it raises is shown on stderr and becomes a code."""
    debug = "--debug" in arguments  # wherever it stands: it is added to a line that just failed
    given = [argument for argument in arguments if argument != "--debug"]
    try:
        with stop_signals():
            code = invoke(application, given)
            if sys.stdout is not None:
                sys.stdout.flush()  # a reader that went away is noticed here, not at exit
            return code
    except KeyboardInterrupt:
        return EXIT_SIGINT
    except Terminated:
        return EXIT_SIGTERM
    except BrokenPipeError:
        raise
    except Exception as problem:
        if debug:
            traceback.print_exc()
        error = typed(problem, given)
        print_error(error, as_json="--json" in given)
        return error.exit_code


def run(application: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command of `application`; its exit code. Quiet where nobody reads its output."""
    try:
        return report(application, arguments)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):  # what is still buffered must not fail again when Python ends
            os.dup2(nowhere, number)
        return EXIT_SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """The `ditscope` command; the exit code (see `ditscope.errors`)."""
    for stream in (sys.stdout, sys.stderr):  # a name the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Threads of a matrix product that spin for each other take the cores from all else that runs,
    # the writer of a run among it. It must be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else arguments
    return run(app, given or ["--help"])
