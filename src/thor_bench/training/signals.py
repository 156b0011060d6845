"""Stopping politely: a signal asks, the training loop answers at the next step boundary."""

import signal
import threading
from types import FrameType
from typing import Self


class StopRequest:
    """While entered, turns SIGINT and SIGTERM into a flag; a second signal stops at once.

    Outside the main thread, where Python cannot handle signals, the flag is never set.

    Attributes:
        asked: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        while self._former:
            number, handler = self._former.popitem()
            signal.signal(number, handler)
