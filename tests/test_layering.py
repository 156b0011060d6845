"""The walls of the house: who may import whom, read from the source text."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import torch_thor

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(torch_thor.__file__).parent
BENCH = PACKAGE / "bench"

# Mathematics and rules: they may use each other, never the engine that calls them.
PURE = {"checks", "linalg", "square_roots", "partition", "schedules", "policies"}


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
        return f"{self.file.relative_to(PACKAGE)}:{self.line}: {what}"


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
    package = ("torch_thor", *file.relative_to(PACKAGE).parent.parts)
    parents = package[: len(package) - (node.level - 1)]
    return ".".join([*parents, *([node.module] if node.module else [])])


def core_files() -> list[Path]:
    return sorted(file for file in PACKAGE.rglob("*.py") if BENCH not in file.parents)


def bench_files() -> list[Path]:
    return sorted(BENCH.rglob("*.py"))


def reaches_past_the_surface(found: Import) -> bool:
    """Is this, in the bench, an import of the optimizer other than of a public name?"""
    inside_bench = (found.module + ".").startswith("torch_thor.bench.")
    if not found.module.startswith("torch_thor") or inside_bench:
        return False
    if found.name is None:
        return found.module != "torch_thor"
    public = {*torch_thor.__all__, "__version__", "bench"}
    return not (found.module == "torch_thor" and found.name in public)


def core_modules(found: Import) -> set[str]:
    """The core modules that an import of torch_thor names."""
    top, *rest = found.module.split(".")
    if top != "torch_thor":
        return set()
    return {rest[0]} if rest else {found.name or "torch_thor"}


def test_the_bench_uses_public_names_only() -> None:
    assert bench_files(), "the bench has moved: this test would check nothing"
    wrong = [
        str(i) for file in bench_files() for i in imports_in(file) if reaches_past_the_surface(i)
    ]
    assert wrong == []


def test_the_core_imports_torch_and_the_standard_library_only() -> None:
    allowed = {"torch", "torch_thor", *sys.stdlib_module_names}
    found = [i for file in core_files() for i in imports_in(file)]
    wrong = [str(i) for i in found if i.module.split(".")[0] not in allowed]
    assert wrong == []


def test_the_core_never_imports_the_bench() -> None:
    found = [i for file in core_files() for i in imports_in(file)]
    assert [str(i) for i in found if "bench" in core_modules(i)] == []


@pytest.mark.parametrize("name", sorted(PURE))
def test_mathematics_and_rules_know_nothing_of_the_engine(name: str) -> None:
    files = [PACKAGE / f"{name}.py", *sorted((PACKAGE / name).rglob("*.py"))]
    present = [file for file in files if file.exists()]
    assert present, f"torch_thor.{name} has moved: this test would check nothing"
    used = set().union(*(core_modules(i) for file in present for i in imports_in(file)))
    assert used - PURE - {"errors"} == set()


def test_every_public_name_exists_and_is_listed_once() -> None:
    assert len(set(torch_thor.__all__)) == len(torch_thor.__all__)
    assert [name for name in torch_thor.__all__ if not hasattr(torch_thor, name)] == []


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from torch_thor import THOR", False),
        ("import torch_thor", False),
        ("from torch_thor.bench.cli import main", False),
        ("from .records import Record", False),
        ("import torch", False),
        ("from torch_thor.linalg import anything", True),
        ("from torch_thor import linalg", True),
        ("import torch_thor.linalg", True),
        ("from ..linalg import anything", True),
        ("def late():\n    from torch_thor.factors import anything", True),
    ],
)
def test_the_check_itself_sees_every_way_to_import(source: str, wrong: bool) -> None:
    found = list(imports_in(BENCH / "example.py", source))
    assert any(reaches_past_the_surface(i) for i in found) == wrong
