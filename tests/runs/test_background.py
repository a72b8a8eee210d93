"""Work in the background: in order, with bounded memory, and no error is lost."""

import threading
from functools import partial

import pytest

from ditscope.runs.background import Background


def test_work_is_done_in_order():
    done = []
    with Background() as background:
        for number in range(100):
            background.submit(1, lambda number=number: done.append(number))
        background.wait()
        assert done == [*range(100)] and background.queued_bytes == 0
        background.submit(1, lambda: done.append("last"))
    assert done[-1] == "last"


def test_whoever_is_faster_than_the_disk_waits():
    """The disk does nothing until it is told to: only what fits is taken until then."""
    disk, taken, done = threading.Semaphore(0), [], []
    background = Background(limit=100)

    def write(number):
        disk.acquire()
        done.append(number)

    def sampling():
        for number in range(10):
            background.submit(30, partial(write, number))
            taken.append(background.queued_bytes)

    thread = threading.Thread(target=sampling)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and taken == [30, 60, 90] and not done
    for _ in range(10):
        disk.release()
    thread.join()
    background.close()
    assert len(done) == 10 and max(taken) <= 100


def test_a_large_piece_is_alone():
    sizes = []
    with Background(limit=10) as background:
        for nbytes in (3, 50, 3, 50):
            background.submit(nbytes, lambda: sizes.append(background.queued_bytes))
    assert sizes[0] == 3 and sizes[1] == sizes[3] == 50


def test_the_first_error_ends_it():
    done, background, submitted = [], Background(), threading.Event()

    def fail():
        submitted.wait()
        raise OSError("no space left")

    background.submit(1, fail)
    background.submit(1, lambda: done.append("never"))
    submitted.set()
    for call in (background.wait, lambda: background.submit(1, fail)):
        with pytest.raises(OSError, match="no space left"):
            call()
    background.close()
    assert not done
    with pytest.raises(OSError, match="no space left"), Background() as again:
        again.submit(1, fail)


def test_an_error_of_the_block_goes_first():
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.submit(1, lambda: 1 / 0)
        raise KeyboardInterrupt
