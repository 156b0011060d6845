"""A run under torchrun that loses a rank once: python elastic.py FOLDER [STEP to die at]."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torch_thor import THOR, TraceRule

STEPS, EVERY = 12, 3


def main(folder: Path, dies_at: int) -> None:
    """Train from the last checkpoint on; rank 1 is killed in the first attempt."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    rank, size = dist.get_rank(), dist.get_world_size()
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    wrapped = DistributedDataParallel(model)
    optimizer = THOR(model, norm_control="graft", lr=0.05, interval=4, trace_rule=TraceRule())
    checkpoint, begin = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]
    with (folder / f"begins-{rank}").open("a") as log:
        log.write(f"{begin}\n")
    for step in range(begin, STEPS):
        if step == dies_at and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 5, generator=generator)[rank::size]
        optimizer.zero_grad()
        (wrapped(inputs) - inputs[:, :3]).square().mean().backward()
        optimizer.step()
        if rank == 0 and (step + 1) % EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1}, folder / "new.pt")
            (folder / "new.pt").replace(checkpoint)
    torch.save(model.state_dict(), folder / f"end-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else -1)
