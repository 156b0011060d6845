"""Fine-tune a language model by LoRA: ``python examples/peft_lora.py``.

A small GPT-2 learns Python's help, which is English. Then low-rank matrices alone learn Python's
source. They are Linear layers, so THOR has their curvature; what is frozen costs nothing.
"""

from __future__ import annotations

import argparse
import inspect
from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from torch_thor import THOR

LENGTH, BATCH = 64, 16


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Tensor, steps: int) -> list:
    """Trains with a rate that falls to zero, and returns the loss of every step."""
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(data) - LENGTH, (BATCH, 1))
        batch = data[starts + torch.arange(LENGTH)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> list[float]:
    """Pre-train, then fine-tune, and return the losses of the fine-tuning."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.003")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--pretrain", type=int, default=200, help="steps")
    parser.add_argument("--steps", type=int, default=200)
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    english, source = "\n".join(topics.values()), inspect.getsource(argparse)
    before, after = (torch.tensor(list(text.encode())) for text in (english, source))
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    train(model, THOR(model), before, said.pretrain)

    targets = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(r=said.rank, lora_alpha=2 * said.rank, target_modules=targets)
    tuned = get_peft_model(model, config)
    if said.optimizer == "thor":
        optimizer = THOR(tuned, lr=said.lr)  # of the wrapped model
    else:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=said.lr or 0.003)
    losses = train(tuned, optimizer, after, said.steps)
    print(f"loss {sum(losses[:10]) / 10:.3f} at first, {sum(losses[-10:]) / 10:.3f} at the end")
    return losses


if __name__ == "__main__":
    main()
