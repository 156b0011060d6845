"""Digits on several processes: ``torchrun --nproc-per-node 2 examples/ddp.py``.

The same script runs on one process, on one machine or on many. It writes a checkpoint after each
epoch and goes on from it when torchrun restarts it (--max-restarts 3).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from torch_thor import THOR

EPOCHS = 5
TRAINING = 1500


def main(checkpoint: Path) -> None:
    """Train a small network; every rank holds the whole model and a share of each batch."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)

    torch.manual_seed(0)
    table, classes = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(table, dtype=torch.float32) / 16, torch.tensor(classes)
    training = TensorDataset(inputs[:TRAINING], labels[:TRAINING])
    sampler = DistributedSampler(training)
    loader = DataLoader(training, batch_size=64 // dist.get_world_size(), sampler=sampler)

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    wrapped = DistributedDataParallel(model)
    optimizer = THOR(model)  # nothing to add: it finds the process group

    begin = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["epoch"]

    for epoch in range(begin, EPOCHS):
        sampler.set_epoch(epoch)
        for images, targets in loader:
            optimizer.zero_grad()
            outputs = wrapped(images.to(device))
            nn.functional.cross_entropy(outputs, targets.to(device)).backward()
            optimizer.step()
        # The state is the same on all ranks, so one of them saves it.
        if dist.get_rank() == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"epoch": epoch + 1}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
        dist.barrier()

    if dist.get_rank() == 0:
        with torch.no_grad():
            right = model(inputs[TRAINING:].to(device)).argmax(1).cpu() == labels[TRAINING:]
        traffic = optimizer.traffic
        print(f"{dist.get_world_size()} ranks, accuracy {right.float().mean():.1%}")
        print(f"curvature: {traffic.messages} messages, {traffic.bytes / 1e6:.2f} MB")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits.pt"))
