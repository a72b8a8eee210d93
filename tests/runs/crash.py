"""Break a writer at one point in its work, in a forked process, and look at what it left.

    python -m tests.runs.crash kill new 1        # at every file operation
    python -m tests.runs.crash clock new 1 50    # at 50 random moments

One line of JSON per point: what the reader finds, how the process ended, and whether the next
write puts everything right. Run as a process of its own, because it forks.
"""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ditscope.errors import BadRun, DitscopeError
from ditscope.runs.reader import open_run
from tests.runs.toy import Toy, manifest_of

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
FINISHED, UNTOUCHED, UNTYPED = 0, 98, 99


def toy_of(seed: int) -> Toy:
    return Toy(manifest_of(steps=2, layers=1, statistics=("entropy",)), seed=seed)


OLD, NEW = toy_of(1), toy_of(2)


class Breaker:
    """Counts the file operations of this process; the one of a given number kills it or fails."""

    def __init__(self) -> None:
        self.count, self.number, self.how = itertools.count(), -1, ""
        self.reached, self.error = False, errno.EIO
        self.within = ""  # count only what happens below this folder
        os.fsync = lambda descriptor: self.operation("fsync")  # no power is cut here
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in FILE_EVENTS and str(arguments[0]).startswith(self.within):
            self.operation(event)

    def operation(self, event: str) -> None:
        if self.number >= 0 and next(self.count) == self.number:
            self.reached = True
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self.error, f"{os.strerror(self.error)} in {event}")


BREAKER = Breaker()


def broken_at(number: float, how: str, write: Callable[[], object]) -> int:
    """Exit status of a forked process that writes and is broken at one operation.

    Minus the number of the signal that killed it; `UNTOUCHED` if it does fewer operations.
    """
    child = os.fork()
    if child == 0:
        status = UNTYPED
        try:
            if how == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), int(number)))
            else:
                BREAKER.number, BREAKER.how = number, how
            write()
            status = FINISHED if BREAKER.reached else UNTOUCHED
        except DitscopeError as error:
            status = error.exit_code
        finally:
            os._exit(status)
    if how == "clock":
        time.sleep(number)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def found(path: Path) -> str:
    """What a reader finds: nothing, or how much of which run, after every number is checked."""
    try:
        run = open_run(path, allow_partial=True)
    except BadRun as error:
        return "nothing" if "does not exist" in str(error) else f"damaged: {error}"
    problems = run.verify().problems
    for name, toy in (("old", OLD), ("new", NEW)):
        if np.array_equal(run.latents, toy.latents[: len(run.steps)]) and not problems:
            return f"{name} {'complete' if run.complete else len(run.steps)}"
    return f"mixed: {problems}"


def main(how: str, scenario: str, every: int, moments: int = 8) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        for number in points(how, path, moments)[::every]:
            if scenario == "over":
                OLD.write(path)
            status = broken_at(number, how, lambda: NEW.write(path, overwrite=scenario == "over"))
            left = found(path)
            NEW.write(path, overwrite=True)
            whole = found(path) == "new complete" and os.listdir(folder) == ["run"]
            report = {"status": status, "found": left, "repaired": whole}
            sys.stdout.write(json.dumps(report) + "\n")
            shutil.rmtree(path)
            if status == UNTOUCHED and how in ("kill", "fail"):
                break


def points(how: str, path: Path, moments: int) -> Sequence[float]:
    """Where to break: numbers of operations, bytes that a file may have, or seconds."""
    if how == "limit":
        return range(200, 6000, 400)
    if how == "clock":
        NEW.write(path)  # the first takes longer: what it needs is imported
        started = time.monotonic()
        NEW.write(path, overwrite=True)
        shutil.rmtree(path)
        return [random.random() * (time.monotonic() - started) for _ in range(moments)]
    return range(1000)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
