"""Stopping a training when it is asked to, without losing what it learned since the last save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Notes the first SIGINT or SIGTERM inside a `with` block; all else is as it was before.

    The training looks at `noted` between its steps, saves, and calls `obey`, which lets the signal
    take the way it would have taken: the handlers from before the block see it then. They also get
    a second signal, at once, and the first one if there is nothing to save.

    One of several processes (`among_others`) may not leave alone, and hears a Ctrl-C twice, from
    the terminal and from its launcher: it notes the first signal, whatever there is to save.
    """

    def __init__(self, anything_to_save: Callable[[], bool], *, among_others: bool = False) -> None:
        self.noted: signal.Signals | None = None
        self._anything_to_save = anything_to_save
        self._among_others = among_others
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stand_back()

    def obey(self) -> None:
        """Do what the noted signal asks for; usually that raises or ends the process."""
        self._stand_back()
        if self.noted is not None:
            signal.raise_signal(self.noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._among_others:
            self.noted = self.noted or signal.Signals(number)
            return
        self._stand_back()
        self.noted = signal.Signals(number)
        if not self._anything_to_save():
            signal.raise_signal(number)

    def _stand_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
