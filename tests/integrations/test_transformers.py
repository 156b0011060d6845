"""Promise: models of ``transformers`` train, are accounted for, and its Trainer runs unchanged."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from torch_thor import KFAC, THOR, Statistics, Treatment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model here is built from its config
transformers = pytest.importorskip("transformers", reason="install the group 'integrations'")

VOCABULARY, LENGTH = 50, 8


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
    )
    return transformers.BertForMaskedLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=LENGTH
    )
    return transformers.GPT2LMHeadModel(config)


def batch() -> dict[str, Tensor]:
    tokens = torch.randint(VOCABULARY, (8, LENGTH))
    return {"input_ids": tokens, "labels": tokens}


BUILDERS = pytest.mark.parametrize("build", [bert, gpt2])


@BUILDERS
@pytest.mark.parametrize("kind", [THOR, KFAC])
def test_a_small_language_model_trains(build: Callable[[], nn.Module], kind: Any) -> None:
    """Case 9, 14, 33."""
    model = build()
    optimizer = kind(
        model, lr=0.02, statistics=Statistics(loss_reduction="positions_mean", rows=None)
    )
    fixed, losses = batch(), []
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**fixed).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert still == unused


@BUILDERS
def test_every_parameter_is_accounted_for(build: Callable[[], nn.Module]) -> None:
    """Case 9, 14: Conv1D is preconditioned, tied weights name each other."""
    model = build()
    report = {entry.name: entry for entry in THOR(model, norm_control="graft").coverage()}
    assert report.keys() == dict(model.named_parameters()).keys()
    for name, module in model.named_modules():
        if type(module).__name__ == "Conv1D":
            assert report[f"{name}.weight"].treatment is Treatment.PRECONDITIONED
    tied = {
        gpt2: "transformer.wte.weight = lm_head.weight",
        bert: "bert.embeddings.word_embeddings.weight = cls.predictions.decoder.weight",
    }[build]
    entry = report[tied.split(" = ")[0]]
    assert tied in entry.reason
    assert entry.treatment is Treatment.BASE


@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_trainer_runs_unchanged(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Case 33: accumulation, clipping, scheduler and checkpoint are the Trainer's own."""
    model = build()
    optimizer = THOR(model, norm_control="graft", lr=0.02)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=6)
    data = [{key: value[0] for key, value in batch().items()} for _ in range(24)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        max_steps=6,
        save_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
    )

    def trainer(model: nn.Module, optimizer: THOR, scheduler: Any) -> Any:
        return transformers.Trainer(
            model=model, args=arguments, train_dataset=data, optimizers=(optimizer, scheduler)
        )

    first = trainer(model, optimizer, scheduler)
    first.train()
    assert optimizer.engine.steps == 6
    assert all(optimizer.engine.stacks[0].ready)

    other = build()
    resumed = THOR(other, norm_control="graft", lr=0.02)
    again = torch.optim.lr_scheduler.LinearLR(resumed, total_iters=6)
    trainer(other, resumed, again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.engine.steps == 6
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
