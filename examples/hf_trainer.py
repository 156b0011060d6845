"""Hugging Face's Trainer with THOR: ``python examples/hf_trainer.py``.

The Trainer builds its optimizer from parameters alone, and THOR has to see the model's layers. So
build it from the model, and hand it over with its schedule: ``optimizers=(optimizer, schedule)``.
Accumulation, clipping, checkpoints and ``resume_from_checkpoint`` stay the Trainer's own.
"""

from __future__ import annotations

import argparse
import tempfile
from pydoc_data.topics import topics

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from torch_thor import THOR

LENGTH = 64


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the losses that the Trainer logged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.003")
    parser.add_argument("--steps", type=int, default=200)
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    text = "\n".join(topics.values())[:200_000]
    tokens = torch.tensor(list(text.encode())).unfold(0, LENGTH, LENGTH)  # bytes are the tokens
    data = [{"input_ids": row, "labels": row} for row in tokens]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip

    if said.optimizer == "thor":
        # GPT-2's Conv1D has curvature; its tied head trains by AdamW
        optimizer = THOR(model, lr=said.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=said.lr or 0.003)
    schedule = get_linear_schedule_with_warmup(optimizer, said.steps // 20, said.steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=said.steps,
                per_device_train_batch_size=16,
                gradient_accumulation_steps=2,
                max_grad_norm=1.0,
                logging_steps=5,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=data,
            optimizers=(optimizer, schedule),
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(f"loss {main()[-1]:.3f}")
