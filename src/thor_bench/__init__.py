"""The ``thor`` command: real workloads and tasks of users, tuned and compared alike.

``from thor_bench import Metric, Squares, Task`` is what a task file needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thor_bench.tasks import Metric, Squares, Task

__all__ = ["Metric", "Squares", "Task"]


def __getattr__(name: str) -> Any:
    """Imports the public names late: the command must start before torch is loaded."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from thor_bench import tasks  # noqa: PLC0415 - as said

    return getattr(tasks, name)
