"""Work that is done in order by one thread, while its input takes at most so much memory.

    with Background() as background:
        background.submit(array.nbytes, lambda: write(array))

Whoever brings work faster than it is done waits: a slow disk slows a sampling down, and does not
fill the memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

QUEUED_BYTES = 64 * 2**20
"""Enough for several layers of Q and K, and less than one layer of a large network's weights."""

Work = Callable[[], object]


class Background:
    """A thread that does what it is given, first in, first out. Used as a context manager.

    `limit` bounds the bytes of all work that is not done; one piece that is larger has to wait
    until it is alone. After the first error nothing more is done, and every later call raises it.
    """

    def __init__(self, limit: int = QUEUED_BYTES) -> None:
        self.limit = limit
        self.queued_bytes = 0
        self._queue: deque[tuple[int, Work]] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what was submitted; raise its error, unless the block has raised one."""
        self.close()
        if kind is None:
            self._raise()

    def submit(self, nbytes: int, work: Work) -> None:
        """Have `work` done after all that was submitted before; `nbytes` is what it holds on to.

        Raises:
            BaseException: what earlier work has raised.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._queue or self.queued_bytes + nbytes <= self.limit
            )
            self._raise()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ditscope-writer")
                self._thread.daemon = True  # a disk that hangs must not keep a process alive
                self._thread.start()
            self._queue.append((nbytes, work))
            self.queued_bytes += nbytes
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when everything submitted is done. Raises what it has raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue)
            self._raise()

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._queue)
        finally:  # a signal may have come while it waited: then the rest is dropped
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._ended)
                if self._ended:
                    return
                nbytes, work = self._queue[0]
            try:
                if self._error is None:
                    work()
            except BaseException as error:
                self._error = error
            finally:
                del work  # and with it the memory that it holds on to
                with self._changed:
                    self._queue.popleft()
                    self.queued_bytes -= nbytes
                    self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
