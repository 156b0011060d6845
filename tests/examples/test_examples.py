"""Promise: each script under ``examples`` runs with the real packages, and THOR trains it well.

Both train for the same few steps, on one thread and in this process: to import the packages takes
longer than to train. ``ddp.py`` and ``fsdp.py`` need ranks: tests/distributed/test_torchrun.py.
``pinn.py`` shows Gauss-Newton, and has no AdamW.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / "examples"
OTHERS = {"ddp", "fsdp", "pinn"}
SHARE = 8  # of the losses the last eighth is averaged, and the first
NEAR = 1.25  # times AdamW's loss: the runs are short, and most end far below it


@dataclass(frozen=True)
class Case:
    """A run of a script.

    Args:
        script: Its name.
        words: What stands on its command line; few enough steps for a second or two.
        packages: What it imports that the optimizer does not need.
        falls: The last loss ÷ the first, at most.
    """

    script: str
    words: str
    packages: tuple[str, ...] = ()
    falls: float = 0.8

    def __str__(self) -> str:
        return f"{self.script} {self.words}".partition(" --epochs")[0].partition(" --steps")[0]


CASES = (
    Case("nanogpt", "--steps 60 --accumulate 1"),
    Case("timm_images", "--epochs 2", ("timm", "sklearn"), 0.95),
    Case("timm_images", "--model test_resnet --epochs 2", ("timm", "sklearn"), 0.5),
    Case("hf_trainer", "--steps 30", ("transformers", "accelerate")),
    Case("lightning_module", "--epochs 4", ("lightning", "sklearn"), 0.5),
    Case("accelerate_loop", "--epochs 4", ("accelerate", "sklearn"), 0.2),
    Case("peft_lora", "--pretrain 20 --steps 60", ("peft", "transformers"), 0.98),
    Case("denoising_unet", "--steps 60", ("sklearn",), 0.5),
    Case("lstm", "--steps 40"),
    Case("pinn_thor", "--steps 100", (), 0.1),
    Case("tabular_mlp", "--epochs 12", ("sklearn",), 0.2),
    Case("finetune", "--steps 25 --images 600", ("timm", "sklearn"), 0.6),
)


@pytest.fixture(autouse=True)
def as_on_a_users_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is fetched, nothing is written beside the sources, and no state stays behind."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    stream = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(stream)
    if importlib.util.find_spec("accelerate"):
        accelerate: Any = importlib.import_module("accelerate.state")
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)


def load(script: str) -> Any:
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ends(losses: list[float]) -> tuple[float, float]:
    """The mean of the first losses, and of the last."""
    count = max(1, len(losses) // SHARE)
    return sum(losses[:count]) / count, sum(losses[-count:]) / count


@pytest.mark.cpu  # they train where their user trains
@pytest.mark.filterwarnings("ignore")  # of the packages' own: workers, loggers, devices
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_example_trains_ahead_of_adamw_or_near_it(case: Case) -> None:
    for package in case.packages:
        pytest.importorskip(package, reason="install the group 'integrations'")
    script = load(case.script)
    thor, adamw = (
        script.main([*case.words.split(), "--optimizer", name]) for name in ("thor", "adamw")
    )
    assert len(thor) == len(adamw) > 2
    first, last = ends(thor)
    assert last < case.falls * first
    assert last < NEAR * ends(adamw)[1]


def test_every_example_is_run() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {case.script for case in CASES} | OTHERS


@pytest.mark.cpu
def test_the_equation_is_solved(capsys: pytest.CaptureFixture[str]) -> None:
    load("pinn").main()
    assert float(capsys.readouterr().out.split()[-1]) < 1e-2  # its relative error
