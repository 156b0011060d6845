"""Digits with sharded weights: ``torchrun --nproc-per-node 2 examples/fsdp.py``.

Each rank keeps some rows of every weight, of its momentum and of its curvature. It writes a
checkpoint after each epoch; a later start, on as many processes as you like, goes on from it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from torch_thor import THOR

EPOCHS = 5
TRAINING = 1500


def main(folder: Path) -> None:
    """Train a small network whose weights are dealt out to the ranks."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    mesh = dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),))

    torch.manual_seed(0)
    table, classes = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(table, dtype=torch.float32) / 16, torch.tensor(classes)
    training = TensorDataset(inputs[:TRAINING], labels[:TRAINING])
    sampler = DistributedSampler(training)
    loader = DataLoader(training, batch_size=64 // dist.get_world_size(), sampler=sampler)

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = THOR(model)  # after fully_shard, which replaces the parameters

    begin = 0
    if folder.exists():
        model(inputs[:1].to(device)).sum().backward()  # shows which layer is the output's
        optimizer.allocate()  # a checkpoint is loaded into tensors that are there
        optimizer.zero_grad()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 0}
        dcp.load(state, checkpoint_id=folder)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["epoch"]

    for epoch in range(begin, EPOCHS):
        sampler.set_epoch(epoch)
        for images, targets in loader:
            optimizer.zero_grad()
            outputs = model(images.to(device))
            nn.functional.cross_entropy(outputs, targets.to(device)).backward()
            optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.save(state | {"epoch": epoch + 1}, checkpoint_id=folder)

    with torch.no_grad():
        right = model(inputs[TRAINING:].to(device)).argmax(1).cpu() == labels[TRAINING:]
    if dist.get_rank() == 0:
        traffic = optimizer.traffic
        print(f"{dist.get_world_size()} ranks, accuracy {right.float().mean():.1%}")
        print(f"curvature: {traffic.messages} messages, {traffic.bytes / 1e6:.2f} MB")
    dist.barrier()  # no rank leaves while another still needs it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits-sharded"))
    sys.stdout.flush()
    if not torch.cuda.is_available():
        os._exit(0)  # FSDP2 keeps gloo's threads alive; they can crash while Python winds up
