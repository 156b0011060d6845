"""Promise: hooks leave nothing behind: not after removal, not in copies, not in pickles."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import torch
from torch import nn

from helpers import EXACT, data, mean_half_square, mlp, train
from torch_thor import THOR, Preconditioner


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )


def test_remove_takes_every_hook_off() -> None:
    """Case 12."""
    model = mlp()
    preconditioner = Preconditioner(model, **EXACT)
    assert hooks_of(model) == 2
    preconditioner.remove()
    assert hooks_of(model) == 0
    preconditioner.remove()  # a second time does nothing


def test_a_second_optimizer_after_the_first_was_removed_behaves_as_the_only_one() -> None:
    """Case 12."""
    batches = [data(8) for _ in range(3)]
    models = [mlp(), mlp()]
    models[1].load_state_dict(models[0].state_dict())
    first = THOR(models[0], norm_control="graft", lr=0.1)
    first.remove()
    train(models[0], THOR(models[0], norm_control="graft", lr=0.1), batches)
    train(models[1], THOR(models[1], norm_control="graft", lr=0.1), batches)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_optimizer_that_is_dropped_is_collected_and_leaves_the_model_usable() -> None:
    """Case 12: nobody calls remove() in a notebook."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    train(model, optimizer, [data(8)])
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    train(model, THOR(model, norm_control="graft", lr=0.1), [data(8)])


def test_deepcopy_and_pickle_of_a_hooked_model() -> None:
    """Case 12: EMA copies and saved models work, and do not feed the original's statistics."""
    model = mlp()
    batches = [data(8) for _ in range(3)]
    reference = mlp()
    reference.load_state_dict(model.state_dict())
    train(reference, THOR(reference, norm_control="graft", lr=0.1), batches)

    optimizer = THOR(model, norm_control="graft", lr=0.1)
    train(model, optimizer, batches[:1])
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        inputs, targets = data(8)
        mean_half_square(other(100 * inputs), targets).backward()
        train(
            other, THOR(other, norm_control="graft", lr=0.1), batches
        )  # a copy can be trained by its own optimizer
    train(model, optimizer, batches[1:])
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
