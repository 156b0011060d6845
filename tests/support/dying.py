"""Processes that are killed at a moment that is named, not guessed from outside."""

from __future__ import annotations

_SOURCE = """
import os, signal, sys
left = {count}
def watch(event, arguments):
    global left
    if event == {event!r} and str(arguments[0]).endswith({ending!r}):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


def dies_at(event: str, ending: str, count: int = 1) -> str:
    """Returns Python source that lets its process kill itself just before it touches a file.

    Args:
        event: ``open`` or ``os.rename``, as Python's audit events are called.
        ending: How the name of the file (of the old name) ends.
        count: At which of these events.
    """
    return _SOURCE.format(count=count, event=event, ending=ending)
