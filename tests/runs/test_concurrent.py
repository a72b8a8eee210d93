"""Two readers and one writer of one run at the same moment."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
import pytest

from ditscope.errors import BadRun
from ditscope.runs.reader import open_run
from ditscope.runs.repair import repair_run
from ditscope.runs.writer import RunWriter
from tests.runs.toy import Toy, manifest_of

SMALL = {"layers": 1, "statistics": ("entropy",), "qk_steps": (0,)}
TOYS = [Toy(manifest_of(steps=steps, **SMALL), seed=steps) for steps in (6, 2, 3)]


def with_readers(read, write):
    """Let two threads `read` over and over while `write` runs; their errors are raised here."""
    done, errors, turns = threading.Event(), [], itertools.count()

    def loop():
        try:
            while not done.is_set():
                read()
                next(turns)
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=loop) for _ in range(2)]
    for each in readers:
        each.start()
    try:
        write()
    finally:
        done.set()
        for each in readers:
            each.join()
    if errors:
        raise errors[0]
    assert next(turns) > 0


def toy_of(run):
    return next(each for each in TOYS if len(each.manifest.steps) == len(run.manifest.steps))


def test_readers_of_a_run_that_grows_see_whole_steps(tmp_path):
    toy, path, seen = TOYS[0], tmp_path / "run", set()

    def read():
        try:
            run = open_run(path, allow_partial=True)
        except BadRun as error:
            assert "does not exist" in str(error)
            return
        count = len(run.steps)
        seen.add((count, run.complete))
        assert np.array_equal(run.latents, toy.latents[:count])
        assert np.array_equal(run.stats.entropy, [each["entropy"] for each in toy.stats[:count]])
        row = run.attention(0, 1, 0, (0, 1))
        expected = toy.probabilities(0, 0, "cond", 0)[1, 1]
        np.testing.assert_allclose(row.values.ravel(), expected, atol=1e-6)

    def write():
        with RunWriter(path, toy.manifest) as writer:
            for step in range(6):
                toy.write_step(writer, step)
            toy.write_end(writer)

    with_readers(read, write)
    read()
    assert (6, True) in seen


def test_readers_of_a_run_that_is_replaced_see_one_of_the_two(tmp_path):
    """It opens at every moment. What is read later may be gone by then, but is never another's."""
    path = TOYS[0].write(tmp_path / "run")

    def read():
        run = open_run(path)
        toy = toy_of(run)
        try:
            latents, entropy = run.latents.values, run.stats.entropy.values
        except BadRun as error:
            assert "is missing" in str(error) or "not the ones that were written" in str(error)
            return
        assert np.array_equal(latents, toy.latents)
        assert np.array_equal(entropy, [each["entropy"] for each in toy.stats])

    def write():
        for turn in range(1, 9):
            TOYS[turn % 3].write(path, overwrite=True)

    with_readers(read, write)


def test_readers_of_a_run_that_is_repaired(tmp_path):
    path = TOYS[0].write(tmp_path / "run")
    lost = path / "data.zarr/latents/c.1.0.0.0.0"
    good = lost.read_bytes()

    def read():
        try:
            run = open_run(path)
        except BadRun as error:
            assert "c.1.0.0.0.0" in str(error)  # the damage itself, and never a seal that is wrong
            return
        assert len(run.steps) == 6 and run.complete

    def write():
        for _ in range(10):
            lost.unlink(missing_ok=True)
            assert repair_run(path).lost
            lost.write_bytes(good)
            assert repair_run(path).complete

    with_readers(read, write)


def test_a_run_is_read_on_after_it_was_moved(tmp_path):
    path = TOYS[0].write(tmp_path / "run")
    run = open_run(path)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(BadRun, match="is missing"):
        run.latents.load()
    assert open_run(tmp_path / "elsewhere").verify().ok


def test_a_file_that_goes_between_the_look_and_the_opening_is_missing(tmp_path, monkeypatch):
    path = TOYS[0].write(tmp_path / "run")
    run = open_run(path)
    opened = os.open

    def gone(file, *rest, **options):
        if "latents" in str(file):
            os.unlink(file)  # what a writer that replaces the run does at this moment
        return opened(file, *rest, **options)

    monkeypatch.setattr(os, "open", gone)
    with pytest.raises(BadRun, match="is missing"):
        run.latents.values  # noqa: B018
