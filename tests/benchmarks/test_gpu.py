"""The benchmark of one GPU: its lines run on a CPU, with tiny shapes."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("name", "count"),
    # As published; ResNet-18 with a stem of 3×3 and ten classes.
    [
        ("cifar_resnet18", 11_173_962),
        ("resnet50", 25_557_032),
        ("ViT", 86_567_656),
        ("GPT", 124_439_808),
    ],
)
def test_networks_have_the_weights_of_the_originals(name: str, count: int) -> None:
    build = runpy.run_path(str(BENCHMARKS / "networks.py"))[name]
    with torch.device("meta"):
        model = build()
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--tasks", "resnet18-128", "--out", str(tmp_path)]
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(BENCHMARKS / "gpu.py"), *words, "--optimizers", "sgd,muon,thor-plain"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["optimizer"] for row in found["resnet18-128"]] == ["sgd", "muon", "thor-plain"]
    assert not [name for name in found if name.startswith(("failed", "absent"))]
    assert found["check: differences and errors"] == 0
    # What no CPU can do is a row that says why.
    assert all("Error" in " ".join(row) for row in found["graphs, resnet18-128"]["resnet18-128"])
    compiled = found["compiled, resnet18-128"]
    assert "absent" not in json.dumps(compiled)
    assert "ms, then" in compiled["resnet18-128, thor-plain"]
    assert compiled["machine"]["card"] in (tmp_path / "gpu.md").read_text()
