"""Whether THOR does the same on a card as on the CPU, and whether losses fall in short types."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_thor import EKFAC, KFAC, THOR, Refresh, Statistics, TraceRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gpu_report import Report

_STEPS = 12
# Equal eigenvalues leave the basis open, and EKFAC's second moments depend on it: its batches have
# more rows than any layer has columns, where a few rows show the others singular factors.
_ROWS, _ROWS_OF_EKFAC = 16, 256
_NORMS = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d, nn.GroupNorm)


class Attention(nn.Module):
    """Tokens [N, L] → [N, 10] through an embedding, norms and fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(31, 24)
        self.before, self.after = nn.LayerNorm(24), nn.RMSNorm(24)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.wide, self.narrow, self.head = nn.Linear(24, 96), nn.Linear(96, 24), nn.Linear(24, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.narrow(functional.gelu(self.wide(self.after(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 100), nn.Tanh(), nn.Linear(100, 80), nn.Tanh(),
        nn.Linear(80, 10),
    )  # fmt: skip


def _convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


def _grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, padding=1, groups=4), nn.GroupNorm(2, 12), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "convnet": _convnet,
    "grouped": _grouped,
    "attention": Attention,
}

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "default": lambda m: THOR(m, lr=0.02),
    "interval 3": lambda m: THOR(m, lr=0.02, interval=3, refresh=Refresh()),
    "interval 1": lambda m: THOR(m, lr=0.02, interval=1),
    "few rows": lambda m: THOR(m, lr=0.02, interval=3, statistics=Statistics(rows=50)),
    "scale_free": lambda m: THOR(m, lr=0.02, interval=3),
    "spectral": lambda m: THOR(m, lr=0.01, interval=3, norm_control="spectral"),
    "power 1": lambda m: THOR(m, lr=0.02, interval=3, power=1.0),
    "unsplit": lambda m: THOR(m, lr=0.02, interval=3, split=None),
    "trace rule": lambda m: THOR(m, lr=0.02, interval=3, trace_rule=TraceRule(0.1, 0.02)),
    "kl_clip": lambda m: THOR(m, lr=0.02, interval=3, norm_control="kl_clip"),
    "norms": lambda m: THOR(m, lr=0.02, interval=3, include=_held(m)),
    "kfac": lambda m: KFAC(m, lr=0.02, factor_interval=2, inverse_interval=4),
    "ekfac": lambda m: EKFAC(m, lr=0.02, factor_interval=2, inverse_interval=4),
}


def _held(model: nn.Module) -> tuple[type[nn.Module], ...]:
    return tuple(kind for kind in _NORMS if any(type(m) is kind for m in model.modules()))


def _batches(
    kind: str, count: int, dtype: torch.dtype, rows: int = _ROWS
) -> list[tuple[Tensor, Tensor]]:
    drawn = torch.Generator().manual_seed(2)
    batches = []
    for _ in range(count):
        if kind == "attention":
            inputs = torch.randint(31, (rows, 12), generator=drawn)
        else:
            inputs = torch.randn(rows, 3, 8, 8, generator=drawn).to(dtype)
        batches.append((inputs, torch.randint(10, (rows,), generator=drawn)))
    return batches


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Tensor, Tensor]],
    autocast: torch.dtype | None = None,
) -> list[float]:
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
    losses = []
    for inputs, targets in batches:
        context = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
        optimizer.zero_grad()
        with context:
            loss = functional.cross_entropy(model(inputs.to(device)), targets.to(device))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def _difference(kind: str, option: str, device: torch.device) -> tuple[float, str]:
    """The largest relative difference of a weight after some float64 steps, and of which."""
    torch.manual_seed(0)
    here = MODELS[kind]().double()
    there = copy.deepcopy(here).to(device)
    rows = _ROWS_OF_EKFAC if option == "ekfac" else _ROWS
    batches = _batches(kind, _STEPS, torch.float64, rows)
    for model in (here, there):
        _train(model, OPTIMIZERS[option](model), batches)
    found = []
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        one, other = one.detach(), other.detach().cpu()  # noqa: PLW2901
        found.append((((one - other).norm() / one.norm()).item(), name))
    return max(found, key=lambda pair: float("inf") if pair[0] != pair[0] else pair[0])


def check_against_cpu(report: Report, kinds: Iterable[str] = MODELS) -> None:
    """float64 on the CPU and on the device, from the same weights over the same data."""
    bad = 0
    for option in OPTIMIZERS:
        for kind in kinds:
            try:
                value, name = _difference(kind, option, report.device)
                bad += not value < 1e-6
                verdict = "ok" if value < 1e-6 else "DIFFERS"
                line = f"{verdict} {option}, {kind}: {value:.1e} ({name})"
            except Exception as error:  # noqa: BLE001 - each has something to say
                bad += 1
                line = f"ERROR {option}, {kind}: {place_of(error)}"
            report.write(f"- {line}")
    report.record("check: differences and errors", bad)


def check_losses(report: Report, kinds: Iterable[str] = MODELS) -> None:
    """Losses of one batch over and over, in float32 and in short types."""
    types = {"float32": None, "bf16": torch.bfloat16, "fp16 scaler": torch.float16}
    chosen = {
        "default": lambda m: THOR(m, lr=0.05, interval=4),
        "scale_free": lambda m: THOR(m, lr=0.02, interval=4),
        "bf16 inverses": lambda m: THOR(
            m, lr=0.05, interval=4, refresh=Refresh(inverse_dtype=torch.bfloat16)
        ),
    }
    for option, build in chosen.items():
        for kind in kinds:
            for name, dtype in types.items():
                try:
                    torch.manual_seed(0)
                    model = MODELS[kind]().to(report.device)
                    batches = _batches(kind, 1, torch.float32) * 24
                    losses = _train(model, build(model), batches, dtype)
                    verdict = "ok" if losses[-1] < 0.9 * losses[0] else "DOES NOT FALL"
                    line = f"{verdict} {option}, {kind}, {name}: {losses[0]:.3f} → {losses[-1]:.3f}"
                except Exception as error:  # noqa: BLE001 - each has something to say
                    line = f"ERROR {option}, {kind}, {name}: {place_of(error)}"
                report.write(f"- {line}")


def place_of(error: BaseException) -> str:
    """An error's first line, and the last place of torch_thor on its way."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "torch_thor" in file:
            place = f" at {file.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    said = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {said}{place}"
