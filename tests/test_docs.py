"""Every Python block of README and docs runs; every relative link leads somewhere.

The blocks of a page share one namespace, in the order of the page. ``torch``, ``nn`` and what a
reader already has (``model``, ``loader``, ``loss_fn``, ``inputs``, ``targets``) are there at first.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import torch_thor
from torch_thor.layers import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks_of(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def what_a_reader_has() -> dict[str, Any]:
    batches = [(torch.randn(16, 20), torch.randint(4, (16,))) for _ in range(3)]
    return {
        "torch": torch,
        "nn": nn,
        "model": nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4)),
        "loader": batches,
        "loss_fn": nn.CrossEntropyLoss(),
        "inputs": batches[0][0],
        "targets": batches[0][1],
    }


@pytest.fixture
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes back the adapters that a page registers, and how much it has logged."""
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))
    logger = logging.getLogger("torch_thor")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.cpu  # readers' lines, which name no device
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks_of(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a block may write files
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path))
    namespace = what_a_reader_has()
    for number, block in enumerate(blocks_of(page)):
        code = compile(block, f"{page.name}, block {number + 1}", "exec")
        exec(code, namespace)  # noqa: S102 - our own documentation


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_shows_how_to_use_the_optimizer() -> None:
    assert any("from torch_thor import" in block for block in blocks_of(ROOT / "README.md"))


def test_the_reference_lists_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: torch_thor\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(torch_thor.__all__)
