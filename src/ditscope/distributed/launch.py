"""Starting processes through torch's elastic launcher, and what becomes of them.

    path = launch(draw, (options,), processes=2)      # draw(group, options) on every rank

The processes end with their parent, however it ends. A typed error of one of them is raised here
with its rank; one that is killed is reported with what it was doing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ditscope import errors
from ditscope.distributed.group import REST, joined
from ditscope.errors import DitscopeError, ResourceError, foreign

SECONDS_TO_CLEAN_UP = 20
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
OURS = "ditscope"
"""Key of our own words in the elastic launcher's error file, beside its own."""

LAUNCHER_LOGS = ("torch.distributed.elastic", "torch.multiprocessing")

SIGNALLED = 128
"""Exit code of a process that cleaned up after a signal, less the number of the signal."""

STOPPING = [getattr(signal, name) for name in LaunchConfig.signals_to_handle.split(",")]
"""Signals that the launcher hands on to the processes it has started."""


def launch(
    work: Callable[..., Any],
    arguments: tuple[object, ...],
    *,
    processes: int,
    seconds_to_clean_up: int = SECONDS_TO_CLEAN_UP,
    sums_on: str = "cpu",
) -> Any:
    """What `work(group, *arguments)` returns on rank 0 of `processes` processes of this machine.

    `work` is a function of a module, and the arguments can be pickled. Call it from the main
    thread: a signal that ends this process ends the others first, and kills those that have not
    ended in time. `sums_on` is as in `joined`.

    Raises:
        DitscopeError: what one of the processes raised.
        ResourceError: one of them was killed.
    """
    with tempfile.TemporaryDirectory(prefix="ditscope-") as folder, _signals_kept() as stopped_by:
        notes = Path(folder) / "notes"
        notes.mkdir()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,  # the same command draws the rest; a rank that dies twice is no chance
            start_method="spawn",
            shutdown_timeout=seconds_to_clean_up,
            logs_specs=DefaultLogsSpecs(log_dir=str(Path(folder) / "logs")),
        )
        try:
            with _quiet():
                returned = elastic_launch(config, _work)(work, arguments, str(notes), sums_on)
        except ChildFailedError as failed:
            raise _reason(*failed.get_first_failure(), notes) from None
        except SignalException as stop:
            stopped_by.append(stop.sigval)
            returned = {}
    return returned[0]


def _work(work: Callable[..., Any], arguments: tuple[object, ...], notes: str, sums_on: str) -> Any:
    """What each process runs."""
    for number in STOPPING:
        signal.signal(number, _stop)
    _share_cores(int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        with joined(Path(notes), sums_on=sums_on) as group:
            return work(group, *arguments)
    except DitscopeError as problem:
        error = problem
    except (MemoryError, torch.OutOfMemoryError) as problem:
        error = ResourceError(f"out of memory: {foreign(problem)}", fix="try a smaller batch")
    report_error(error)
    raise SystemExit(error.exit_code)


def report_error(error: DitscopeError) -> None:
    """Hand a typed error to whoever launched this process."""
    place = os.environ.get(ERROR_FILE)
    if place:
        words = {"message": str(error), "timestamp": int(time.time()), OURS: error.to_dict()}
        Path(place).write_text(json.dumps(words), encoding="utf-8")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind once, so that cleanups run; the parent kills what does not end in time."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(SIGNALLED + number)


def _share_cores(processes: int) -> None:
    """Threads that together are as many as the cores, unless the user has said how many."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // processes))


def _reason(rank: int, failure: ProcessFailure, notes: Path) -> DitscopeError:
    """The failure of one process as one of our own errors."""
    said = failure.error_file_data.get(OURS)
    if isinstance(said, dict):
        kind = getattr(errors, str(said["error"]))
        places = {name: said[name] for name in ("file", "field", "expected", "fix")}
        return kind(f"process {rank}: {said['problem']}", **places)
    ended_by = -failure.exitcode if failure.exitcode < 0 else failure.exitcode - SIGNALLED
    if ended_by > 0:
        note = notes / str(rank)
        doing = note.read_text(encoding="utf-8") if note.exists() else "before it did anything"
        return ResourceError(
            f"process {rank} was ended by {signal.Signals(ended_by).name} {foreign(doing, 1000)}",
            fix=REST,
        )
    message: object = failure.message  # of torch's: text, or a tree that holds it
    text = message.get("message", "") if isinstance(message, dict) else message
    return DitscopeError(f"this is a bug in ditscope: process {rank}: {foreign(text, 1000)}")


@contextlib.contextmanager
def _signals_kept() -> Iterator[list[signal.Signals]]:
    """Put back the handlers that the launcher replaces; then hand on the signal that stopped it."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    stopped_by: list[signal.Signals] = []
    try:
        yield stopped_by
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped_by:
        signal.raise_signal(stopped_by[0])
        raise KeyboardInterrupt  # its handler let us go on: we do not


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the launcher's own log off the terminal: we say what there is to say."""
    logs = [logging.getLogger(name) for name in LAUNCHER_LOGS]
    heard, silent = [log.propagate for log in logs], logging.NullHandler()
    for log in logs:
        log.addHandler(silent)
        log.propagate = False
    try:
        yield
    finally:
        for log, propagate in zip(logs, heard, strict=True):
            log.propagate = propagate
            log.removeHandler(silent)
