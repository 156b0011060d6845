"""The names of a model's modules as the model itself has them, whoever has wrapped it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

# Module, class and the name under which an instance holds what it wraps. Looked up where they
# are imported already: importing torch._dynamo would take a process seconds.
_CHECKPOINT = "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"
_FSDP = "torch.distributed.fsdp.fully_sharded_data_parallel"
_WRAPPERS = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    ("torch.optim.swa_utils", "AveragedModel", "module"),
    (_CHECKPOINT, "ActivationWrapper", "_checkpoint_wrapped_module"),
    (_FSDP, "FullyShardedDataParallel", "_fsdp_wrapped_module"),
)
_UNMISTAKABLE = frozenset(segment for _, _, segment in _WRAPPERS if segment.startswith("_"))


def own_names(model: nn.Module) -> dict[str, str]:
    """Returns the own path of every module of a model, by its path.

    Paths as in ``model.named_modules(remove_duplicate=False)``. An own path has no segment of a
    wrapper (``torch.compile``, DistributedDataParallel, DataParallel, AveragedModel, activation
    checkpointing, FSDP), so a wrapped model has the names of the bare one.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    own = {"": ""}
    for path in modules:
        if path:
            parent, _, last = path.rpartition(".")
            wraps = _holds(modules[parent]) == last
            own[path] = own[parent] if wraps else joined(own[parent], last)
    return own


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters of a model by their own names, as ``named_parameters`` orders them."""
    own = own_names(model)
    found = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        found[joined(own[path], leaf)] = parameter
    return found


def joined(*parts: str) -> str:
    """Joins parts of a path; empty ones don't count."""
    return ".".join(filter(None, parts))


def bare(name: str) -> str:
    """A name without the segments that only wrappers have."""
    return joined(*(segment for segment in name.split(".") if segment not in _UNMISTAKABLE))


def unwrapped(names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Returns the own names of layers whose names were saved, by the names as they were saved.

    Args:
        names: Saved names.
        expected: Own names of the layers of the model at hand. They decide whether a first
            segment ``module``, which models have too, was a wrapper's.
    """
    known = set(expected)
    found = {name: bare(name) for name in names}
    wrapped = all(path.split(".")[0] == "module" for path in found.values())
    if wrapped and not known & set(found.values()):
        return {name: path.removeprefix("module").lstrip(".") for name, path in found.items()}
    return found


def _holds(module: nn.Module) -> str | None:
    """The name under which a wrapper holds what it wraps; ``None`` for any other module."""
    for place, kind, segment in _WRAPPERS:
        wrapper = getattr(sys.modules.get(place), kind, None)
        if wrapper is not None and isinstance(module, wrapper):
            return segment
    return None
