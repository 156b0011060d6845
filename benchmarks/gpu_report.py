"""What benchmarks/gpu.py says: printed as it comes, kept as Markdown and JSON; and its time."""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class Report:
    """Prints lines at once and keeps them in a folder.

    Args:
        folder: Where ``gpu.md``, ``gpu.json`` and lists of kernels go.
        device: What is measured.
        seconds: Time after which no new section starts.
    """

    def __init__(self, folder: Path, device: torch.device, seconds: float) -> None:
        self.folder, self.device = folder, device
        self._begin, self._seconds = time.perf_counter(), seconds
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / "gpu.md").open("w")
        self._records: dict[str, Any] = {"machine": self._machine()}
        self.write("# " + ", ".join(str(value) for value in self._machine().values()))

    def _machine(self) -> dict[str, str]:
        if self.device.type == "cuda":
            card = torch.cuda.get_device_name(self.device)
        else:
            card = f"{platform.machine()}, {torch.get_num_threads()} threads"
        today = datetime.now(UTC).date().isoformat()
        return {"card": card, "torch": f"torch {torch.__version__}", "date": today}

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._seconds - (time.perf_counter() - self._begin)

    def write(self, text: str) -> None:
        """Prints lines and adds them to the Markdown file."""
        for stream in (sys.stdout, self._lines):
            stream.write(text + "\n")
            stream.flush()

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Writes a Markdown table; what a short row lacks stays empty."""
        full = [[*row, *[""] * (len(headings) - len(row))] for row in rows]
        lines = [headings, ["---"] * len(headings), *full]
        self.write("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))

    def record(self, name: str, value: object) -> None:
        """Keeps a value in the JSON file."""
        self._records[name] = value
        text = json.dumps(self._records, indent=1, default=str)
        (self.folder / "gpu.json").write_text(text + "\n")

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Says what comes and how long it took; an error ends this section alone."""
        begin = time.perf_counter()
        self.write(f"\n## {name}\n")
        try:
            yield
        except Exception:  # noqa: BLE001 - the others still have something to say
            last = traceback.format_exc().strip().splitlines()
            self.write("FAILED\n\n```\n" + "\n".join(last[-16:]) + "\n```")
            self.record(f"failed: {name}", last)
        taken = time.perf_counter() - begin
        self.write(f"\n({taken:.1f} s; {self.left:.0f} s left)")

    def starts(self, name: str, needed: float) -> bool:
        """Says whether a section that needs some seconds may start, and notes it where not."""
        if self.left < needed:
            why = f"left out: {self.left:.0f} s left, {needed:.0f} s needed"
            self.write(f"\n## {name}\n\n{why}")
            self.record(f"absent: {name}", why)
            return False
        return True
