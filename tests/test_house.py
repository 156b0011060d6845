"""The walls of the house: who may import whom, read from the source text."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

import thor_bench
import torch_thor
from torch_thor.curvature.damping import RULES
from torch_thor.directions.controls import CONTROLS
from torch_thor.options.curvature import DampingMode
from torch_thor.options.norm_control import NormControlKind
from torch_thor.options.update import BaseRule
from torch_thor.update.base_rules import BASE_RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(torch_thor.__file__).parent
BENCH = Path(thor_bench.__file__).parent
SERVED = {
    Path("watching/lightning.py"): {"lightning", "pytorch_lightning"},
    Path("watching/transformers.py"): {"transformers"},
}


@dataclass(frozen=True)
class Import:
    """One imported name: ``from module import name``, or ``import module`` (name is None)."""

    file: Path
    line: int
    module: str
    name: str | None

    def __str__(self) -> str:
        what = (
            f"import {self.module}"
            if self.name is None
            else f"from {self.module} import {self.name}"
        )
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.line}: {what}"


def imports_in(file: Path, source: str | None = None) -> Iterator[Import]:
    """Every import of a file, function bodies and TYPE_CHECKING blocks included."""
    text = file.read_text(encoding="utf-8") if source is None else source
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, file)
            for alias in node.names:
                yield Import(file, node.lineno, module, alias.name)


def absolute(node: ast.ImportFrom, file: Path) -> str:
    if node.level == 0:
        return node.module or ""
    package = file.relative_to(PACKAGE.parent).parent.parts
    parents = package[: len(package) - (node.level - 1)]
    return ".".join([*parents, *([node.module] if node.module else [])])


def core_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def bench_files() -> list[Path]:
    return sorted(BENCH.rglob("*.py"))


def reaches_past_the_surface(found: Import) -> bool:
    """Is this, in the bench, an import of the optimizer other than of a public name?"""
    inside_bench = (found.module + ".").startswith("thor_bench.")
    if not found.module.startswith("torch_thor") or inside_bench:
        return False
    if found.name is None:
        return found.module != "torch_thor"
    public = {*torch_thor.__all__, "__version__"}
    return not (found.module == "torch_thor" and found.name in public)


def test_the_bench_uses_public_names_only() -> None:
    assert bench_files(), "the bench has moved: this test would check nothing"
    wrong = [
        str(i) for file in bench_files() for i in imports_in(file) if reaches_past_the_surface(i)
    ]
    assert wrong == []


def test_the_core_imports_torch_and_the_standard_library_only() -> None:
    """A module of ``watching`` may import the package that it serves; no other imports it."""
    allowed = {"torch", "torch_thor", *sys.stdlib_module_names}
    found = [i for file in core_files() for i in imports_in(file)]
    wrong = [
        str(i)
        for i in found
        if i.module.split(".")[0] not in allowed | SERVED.get(i.file.relative_to(PACKAGE), set())
    ]
    assert wrong == []
    modules = {f"torch_thor.watching.{file.stem}" for file in SERVED}
    assert [str(i) for i in found if i.module in modules] == []


def test_every_public_name_exists_and_is_listed_once() -> None:
    assert len(set(torch_thor.__all__)) == len(torch_thor.__all__)
    assert [name for name in torch_thor.__all__ if not hasattr(torch_thor, name)] == []


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from torch_thor import THOR", False),
        ("import torch_thor", False),
        ("from thor_bench.cli import main", False),
        ("from .records import Record", False),
        ("import torch", False),
        ("from torch_thor.linalg.matrices import anything", True),
        ("from torch_thor import linalg", True),
        ("import torch_thor.linalg.matrices", True),
        ("def late():\n    from torch_thor.curvature.factors import anything", True),
    ],
)
def test_the_check_itself_sees_every_way_to_import(source: str, wrong: bool) -> None:
    found = list(imports_in(BENCH / "example.py", source))
    assert any(reaches_past_the_surface(i) for i in found) == wrong


def test_the_rooms_are_few() -> None:
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    assert len(entries) <= 13, sorted(entries)


@pytest.mark.parametrize("file", [*core_files(), *bench_files()], ids=lambda file: file.stem)
def test_a_module_and_its_functions_can_be_read_at_once(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno is not None}
    assert {name: lines for name, lines in long.items() if lines > 50} == {}


SURFACE = {"optimizers.py", "preconditioner.py", "options/defaults.py"}  # which name defaults


def files_that_say(words: tuple[str, ...]) -> set[str]:
    """The files of the package in which a word stands as a value, the public surface aside."""
    return {
        str(file.relative_to(PACKAGE))
        for file in core_files()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in words
    } - SURFACE


@pytest.mark.parametrize(
    ("kinds", "option", "classes"),
    [
        (NormControlKind, "options/norm_control.py", "directions/controls.py"),
        (DampingMode, "options/curvature.py", "curvature/damping.py"),
        (BaseRule, "options/update.py", "update/base_rules.py"),
    ],
)
def test_a_new_kind_touches_two_files(kinds: object, option: str, classes: str) -> None:
    """Its name and what it allows stand in one, its class in the other; nobody else asks."""
    assert files_that_say(get_args(kinds)) == {option, classes}


def test_every_kind_has_its_class() -> None:
    assert set(CONTROLS) == set(get_args(NormControlKind))
    assert set(RULES) == set(get_args(DampingMode))
    assert set(BASE_RULES) == set(get_args(BaseRule))
