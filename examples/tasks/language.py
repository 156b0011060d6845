"""Hugging Face: ``thor compare examples/tasks/language.py --optimizers thor,muon,adamw``.

A model of ``transformers`` with its own loss, on batches that are mappings. It is built from a
small config; ``GPT2LMHeadModel.from_pretrained("gpt2")`` may stand there as well.
"""

from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from thor_bench import Metric, Task

LENGTH = 32


def model():
    """A GPT-2 of two blocks."""
    config = GPT2Config(
        vocab_size=128,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
        loss_type="ForCausalLM",
    )
    return GPT2LMHeadModel(config)


def loss(model, batch):
    """The model's own loss, the mean over positions."""
    return model(**batch).loss


def task():
    """Python's help topics, 40,000 characters in windows of 32, the last tenth for the test."""
    letters = "".join(topics.values())[:40_000]
    text = torch.tensor([min(ord(letter), 127) for letter in letters])
    windows = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
    border = len(windows) * 9 // 10
    train, test = windows[:border], windows[border:]
    return Task(
        model=model,
        loss=loss,
        train={"input_ids": train, "labels": train},
        test={"input_ids": test, "labels": test},
        batch_size=16,
        epochs=2,
        loss_reduction="positions_mean",
        metric=Metric(name="cross-entropy", unit="nats", score=loss, higher_is_better=False),
    )
