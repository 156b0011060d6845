"""Promise: docs/coverage.md says what the optimizer does with models that people train, today."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

for library in ("timm", "torchvision", "transformers"):
    pytest.importorskip(library, reason="install the group 'integrations'")

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_script_prints() -> None:
    """Case 9, 14: every parameter of six models, with its reason."""
    page = runpy.run_path(str(ROOT / "scripts" / "print_coverage.py"))["page"]()
    written = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page == written, "run: python scripts/print_coverage.py > docs/coverage.md"
