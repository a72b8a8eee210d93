"""Break a training at some moment, in a forked process, and go on: what is there in the end?

    python -m tests.train.crash clock 20

One line of JSON per break. Run as a process of its own, because it forks.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from ditscope.core.atomic import UNFINISHED
from ditscope.train.checkpoint import newest_checkpoint
from ditscope.train.config import TrainConfig
from ditscope.train.loop import Training
from tests.runs.crash import BREAKER, UNTOUCHED, broken_at
from tests.train.tiny import config, same

SHORT = config(steps=6, save_every=2, log_every=3, precision="fp32")
LONG = config(steps=90, save_every=5, log_every=7)


def train(settings: TrainConfig, folder: Path) -> None:
    with Training(settings, folder) as training:
        training.run(lambda line: None, lambda text: None)


def forked(settings: TrainConfig, folder: Path, kill_after: float | None = None) -> int:
    """Exit status of a process that trains; minus the signal, if it was killed in time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(settings, folder)
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder: Path, whole: Path) -> dict[str, object]:
    """Whether a finished training is the uninterrupted one, and what else lies in its folder."""
    ours, theirs = newest_checkpoint(folder)[0], newest_checkpoint(whole)[0]
    assert theirs is not None
    parts = ("model", "ema", "optimizer")
    equal = ours is not None and ours.step == theirs.step
    return {
        "equal": equal and all(same(getattr(ours, part), getattr(theirs, part)) for part in parts),
        "log": losses(folder) == losses(whole),
        "left": sorted(path.name for path in folder.iterdir() if UNFINISHED.fullmatch(path.name)),
    }


def losses(folder: Path) -> list[tuple[object, ...]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines if "loss" in line]


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def by_clock(base: Path, kills: int) -> None:
    """Kill one training again and again at random times until it is through."""
    started = time.monotonic()
    assert forked(LONG, base / "whole") == 0
    took = time.monotonic() - started
    chance = random.Random(os.getpid())
    for _ in range(kills):
        status = forked(LONG, base / "killed", kill_after=took * chance.random() * 0.15)
        found, damaged = newest_checkpoint(base / "killed")
        say(status=status, step=found.step if found else 0, damaged=damaged)
    say(status=forked(LONG, base / "killed"), **outcome(base / "killed", base / "whole"))


def by_operation(base: Path, how: str, every: int) -> None:
    """Kill at, or let fail, every so-manyth file operation of a training, then train again."""
    assert forked(SHORT, base / "whole") == 0
    for number in range(0, 10_000, every):
        folder = base / "broken"
        status = broken_at(number, how, lambda: train(SHORT, folder))  # noqa: B023
        found, damaged = newest_checkpoint(folder) if folder.exists() else (None, [])
        again = forked(SHORT, folder)
        step = found.step if found else 0
        say(
            status=status,
            step=step,
            damaged=damaged,
            again=again,
            **outcome(folder, base / "whole"),
        )
        shutil.rmtree(folder)
        if status == UNTOUCHED:
            break


if __name__ == "__main__":
    torch.set_num_threads(1)
    BREAKER.error = errno.ENOSPC
    with tempfile.TemporaryDirectory() as place:
        BREAKER.within = place
        train(SHORT, Path(place) / "warm")  # what is imported late is imported before the forks
        train(LONG.model_copy(update={"steps": 1}), Path(place) / "warm too")
        if sys.argv[1] == "clock":
            by_clock(Path(place), int(sys.argv[2]))
        else:
            by_operation(Path(place), sys.argv[1], int(sys.argv[2]))
