"""A user's file with a function ``task`` becomes a task; its mistakes are told by line."""

import hashlib
import os
import re
import shlex
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

from torch import nn

import torch_thor
from thor_bench.errors import BenchError, is_lost_contact, reason
from thor_bench.tasks.squares import Squares
from thor_bench.tasks.streams import Draws
from thor_bench.tasks.task import Task
from thor_bench.tasks.trees import named

FUNCTION = "task"
_NEW = "see how one looks with: thor new my_task.py"
_ENDING = ".py"
_OURS = tuple(
    str(path) + os.sep
    for path in (Path(__file__).parents[1], Path(str(torch_thor.__file__)).parent)
)
_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_IN_WORKER = re.compile(r'File "([^"]+)", line (\d+)')
_LONGEST = 400  # characters of an error's message


def is_file(name: str) -> bool:
    """Whether a name is a file's, or a function's in it."""
    return name.endswith(_ENDING) or f"{_ENDING}:" in name


@dataclass(frozen=True)
class TaskFile:
    """Where a task of a user's own comes from.

    Attributes:
        path: Its file, as the user wrote it.
        function: The function that returns it.
        content: Digest of the file.
        line: Where the function begins; 0: not known.
    """

    path: Path
    function: str
    content: str
    line: int = 0

    @property
    def label(self) -> str:
        """Its name for folders."""
        rest = "" if self.function == FUNCTION else f"-{self.function}"
        return f"{self.path.stem}{rest}"

    @contextmanager
    def telling(self, doing: str, where: object = None) -> Iterator[None]:
        """Tells in one line, with the user's own, of whatever the user's code raises.

        Args:
            doing: What is done, in words.
            where: Function whose line is told where the error has none of the file's.

        Raises:
            BenchError: The block raised.
        """
        try:
            with _same_folder(self.path):
                yield
        except BenchError:
            raise
        except (Exception, SystemExit) as error:
            if type(error).__module__.startswith("torch_thor") or is_lost_contact(error):
                raise
            raise BenchError(self._told(error, doing, where)) from error

    def make(self, function: Callable[[], Any]) -> Task:
        """Calls the user's function.

        Raises:
            BenchError: It raises, or returns something else.
        """
        with self.telling(f"{self.function}()", function):
            task = function()
            if not isinstance(task, Task):
                message = f"it returned {named(task)}; it must return a thor_bench.Task"
                raise TypeError(f"{message}, {_NEW}")
            return task

    def _told(self, error: BaseException, doing: str, where: object) -> str:
        frames = [
            (f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)
        ]
        places = [one for one in frames if self._is_own(one[0])]
        text = reason(error)
        kind = type(error).__name__
        if isinstance(error, SyntaxError) and error.filename and self._is_own(error.filename):
            places, text = [(error.filename, error.lineno or 1)], error.msg
        elif in_worker := _IN_WORKER.findall(text):  # a loader's process sends its traceback
            places += [(file, int(line)) for file, line in in_worker if self._is_own(file)]
            text = str(error).strip().splitlines()[-1].removeprefix(f"{kind}: ")
        elif not places and (code := self._own_code(where)):
            places = [(code.co_filename, code.co_firstlineno)]
        checked_here = frames[-1][0].startswith(_OURS) and not isinstance(error, SyntaxError)
        text = text[:_LONGEST] if checked_here or text == kind else f"{kind}: {text[:_LONGEST]}"
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{self._place(*places[-1]) if places else place}: {doing}: {text}"

    def line_of(self, function: object) -> int:
        """Returns where a function of the user's begins; 0: not known."""
        code = self._own_code(function)
        return code.co_firstlineno if code else 0

    def _own_code(self, function: object) -> CodeType | None:
        code = _code(function)
        return code if code and self._is_own(code.co_filename) else None

    def _is_own(self, file: str) -> bool:
        """Whether a source file is the user's: in the folder of the task, and not installed."""
        path = os.path.realpath(file)
        installed = any(part in Path(path).parts for part in _INSTALLED)
        others = (*_OURS, _STANDARD)
        folder = os.path.realpath(self.path.parent) + os.sep
        source = Path(path).is_file() and path.startswith(folder)
        return source and not installed and not path.startswith(others)

    def _place(self, file: str, line: int) -> str:
        path = self.path
        if os.path.realpath(file) != os.path.realpath(path):
            path = Path(os.path.relpath(file))
        return f"{path}:{line}"


def _code(where: object) -> CodeType | None:
    """Returns the code of a function, or of what stands for one."""
    while isinstance(where, partial | Squares):
        where = where.func if isinstance(where, partial) else where.residuals
    for name in ("__code__", "__init__", "__call__"):
        found = getattr(where, name, None)
        code = found if isinstance(found, CodeType) else getattr(found, "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None


@cache
def load_task(name: str) -> Task:
    """Returns the task of a file: ``my_task.py``, or ``my_task.py:name``.

    Raises:
        BenchError: There is no such file or function, or it makes no task.
    """
    path, function = _parts(name)
    try:
        source = path.read_bytes()
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror})"
        raise BenchError(f"{message}; begin one with: thor new {shlex.quote(str(path))}") from error
    file = TaskFile(path, function, hashlib.sha256(source).hexdigest()[:12])
    # A task that draws its data does so alike for every seed of a run.
    with Draws(0):
        with file.telling("reading the file"):
            module = _module(path, source)
        make = getattr(module, function, None)
        if not callable(make):
            raise BenchError(_without(path, function, module))
        file = replace(file, line=file.line_of(make))
        task = file.make(make)
    if isinstance(task.model, nn.Module):
        task = replace(task, model=partial(_again, file, make))
    return replace(task, name=name, origin=file)


@contextmanager
def _same_folder(path: Path) -> Iterator[None]:
    """Refuses code that changes the folder of the process, where names that follow would lead.

    Raises:
        BenchError: It did; the folder is as before.
    """
    before = os.getcwd()  # noqa: PTH109 - at every call of the user's code
    try:
        yield
    finally:
        now = os.getcwd()  # noqa: PTH109
        if now != before:
            os.chdir(before)
    if now != before:
        message = f"{path} changes the working folder to {now}, and so what --out means"
        raise BenchError(f"{message}; leave os.chdir out, and read from Path(__file__).parent")


def _parts(name: str) -> tuple[Path, str]:
    stem, ending, function = name.rpartition(f"{_ENDING}:")
    return (Path(stem + _ENDING), function) if ending else (Path(name), FUNCTION)


def _module(path: Path, source: bytes) -> ModuleType:
    """Runs a file as a module; what stands beside it can be imported."""
    folder = os.path.realpath(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = ModuleType(f"thor_task_{path.stem}")
    module.__file__ = os.path.realpath(path)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    code = compile(source, module.__file__, "exec")
    exec(code, vars(module))  # noqa: S102 - it is what the user asks for
    return module


def _without(path: Path, function: str, module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    has = f"it has {', '.join(own)}" if own else "it has no function"
    if function in vars(module):
        has = f"its {function} is {named(getattr(module, function))}"
    message = f"{path} has no function {function}(); {has}"
    return f"{message}; write def {function}() that returns a Task ({_NEW})"


def _again(file: TaskFile, make: Callable[[], Any]) -> nn.Module:
    """Returns the model of another call, whose weights are fresh."""
    model: Any = file.make(make).model
    return cast("nn.Module", model)
