"""What README and docs say holds: blocks run, links lead somewhere, numbers stand in tables.

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
NO_SENTENCES = re.compile(
    r"^```.*?^```$|^(?:#|\||:::|!\[|    ).*?$", re.DOTALL | re.MULTILINE
)  # code, headings, tables, figures, formulas
NUMBER = r"(?:∞|[\d,]+(?:\.\d+)?)"
SPREAD = re.compile(rf"({NUMBER})(?: %| s)? \(({NUMBER})–({NUMBER})\)")  # median (low–high)


def blocks_of(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace("**", "")


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


def sentences_of(text: str) -> Iterator[list[str]]:
    """Words of each sentence; a link is its text, code in a sentence is one word."""
    text = NO_SENTENCES.sub("", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", text))
    text = re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "\n\n", text, flags=re.MULTILINE)  # an item ends one
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])[)*\"]*\s+", paragraph.strip()):
            if words := [word for word in sentence.split() if re.search(r"\w", word)]:
                yield words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page: Path) -> None:
    lengths = [len(words) for words in sentences_of(text_of(page))]
    assert sum(lengths) <= 20 * len(lengths), f"{sum(lengths) / len(lengths):.1f} words on average"


def test_the_count_of_words_sees_sentences_alone() -> None:
    text = (
        "# A head\n\nOne two. Is `a b` [three four](x.md)?\n\n- five\n\n| a |\n\n```\ncode\n```\n"
    )
    found = [" ".join(words) for words in sentences_of(text)]
    assert found == ["One two.", "Is code three four?", "five"]


def spreads_in(text: str) -> set[tuple[str, ...]]:
    return {tuple(n.replace(",", "") for n in m.groups()) for m in SPREAD.finditer(text)}


def rounds_to(written: str, quoted: str) -> bool:
    if "∞" in (written, quoted):
        return written == quoted
    digits = len(quoted.partition(".")[2])
    return abs(float(written) - float(quoted)) <= 0.5 * 10**-digits + 1e-9


@pytest.mark.parametrize("name", ["results", "paper"])
def test_medians_stand_in_a_table_that_a_command_wrote(name: str) -> None:
    tables = (ROOT / "docs" / "results").rglob("*.md")
    written = set().union(*(spreads_in(text_of(table)) for table in tables))
    quoted = spreads_in(text_of(ROOT / "docs" / f"{name}.md"))
    missing = [q for q in quoted if not any(all(map(rounds_to, w, q)) for w in written)]
    assert quoted
    assert missing == []


def test_numbers_of_the_readme_stand_in_the_table_that_their_row_links() -> None:
    lines = text_of(ROOT / "README.md").splitlines()
    rows = [line.split("|")[2:] for line in lines if line.startswith("|") and LINK.search(line)]
    assert len(rows) == 5
    for *cells, link, _ in rows:
        (target,) = LINK.findall(link)
        written = {median for median, _, _ in spreads_in(text_of(ROOT / target))}
        quoted = [cell.strip() for cell in cells if cell.strip()]
        assert len(quoted) >= 3
        assert [q for q in quoted if not any(rounds_to(w, q) for w in written)] == []


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_the_house_has_the_rooms_that_it_draws() -> None:
    package = Path(torch_thor.__file__).parent
    page = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    drawing = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    drawn = re.findall(r"^([a-z]\w*)", drawing, re.MULTILINE)
    rooms = {path.stem for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert sorted(drawn) == sorted(rooms - {"__init__", "__pycache__"})
    modules = {path.stem for path in package.rglob("*.py")}
    named = re.findall(r"^ +(\w+(?:, \w+)*)(?:  |$)", drawing, re.MULTILINE)
    assert named
    assert {name for line in named for name in line.split(", ")} <= modules


def test_one_version_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (cited,) = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    (released,) = re.findall(r"^date-released: (\S+)$", citation, re.MULTILINE)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert cited == torch_thor.__version__
    assert f"## [{cited}] - {released}\n" in changes


def test_the_readme_shows_how_to_use_the_optimizer() -> None:
    assert any("from torch_thor import" in block for block in blocks_of(ROOT / "README.md"))


def test_the_reference_lists_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: torch_thor\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(torch_thor.__all__)
