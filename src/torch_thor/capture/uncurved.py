"""Matrices among the parameters without curvature: recurrent weights, experts, own layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from torch_thor.layers.shards import unsharded_type

if TYPE_CHECKING:
    from torch_thor.capture.tracked import Identity

# How torch names what a parametrization makes a weight of: weight_v and weight_orig by the old
# ones, X.parametrizations.weight.original for X.weight by those of now.
_OLD = re.compile(r"_(orig|v)$")
_NEW = re.compile(r"(?:^|\.)parametrizations\.(\w+)\.original\d*$")
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Whose weights are tables or gains, whatever a subclass of them is called.
_NO_MAPS = (
    *(nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU),
    nn.modules.batchnorm._NormBase,  # noqa: SLF001 (there is no public name)
)
# Of modules of the user's own. Tables are added or looked up, and multiply nothing.
_WEIGHT = re.compile(r"weight|kernel|proj|expert|(^|_)w(_|\d|$)|^w[a-z]$")
_TABLE = re.compile(
    r"pos|emb|token|table|codebook|prompt|quer|latent|norm|scale|gain|prelu|layer_weight"
)


@dataclass(frozen=True)
class Matrices:
    """A parameter as matrices, each of which is a map of its own.

    Args:
        owner: The module that holds it.
        place: Own name of that module.
        shape: (count, rows, columns).
    """

    owner: nn.Module
    place: str
    shape: tuple[int, int, int]

    @property
    def may_end(self) -> bool:
        """Whether it may be an output layer: it is a single map, and applied once."""
        return self.shape[0] == 1 and not isinstance(self.owner, _RECURRENT)

    @property
    def identity(self) -> Identity:
        """Its layer's, if it were one."""
        return self.owner, ""


def matrices_of(model: nn.Module, path: str, name: str, parameter: nn.Parameter) -> Matrices | None:
    """Returns a parameter as matrices; ``None`` where it is none, or may be none.

    Types decide where they are torch's. Elsewhere names have to say that it is a weight. What a
    parametrization makes a weight of counts as that weight, where it has its shape.

    Args:
        model: The model.
        path: Its name there, with those of wrappers.
        name: Its own name, without them.
        parameter: The parameter. None that is sharded, or of another class, is taken.
    """
    made = _NEW.search(path)
    at = path[: made.start()] if made else path.rpartition(".")[0]
    name = _NEW.sub(r".\1", name).removeprefix(".")
    owner = model.get_submodule(at)
    plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    filled = parameter.dim() > 1 and parameter.numel()
    if not (plain and filled and parameter.is_floating_point()):
        return None
    place, _, leaf = name.rpartition(".")
    if isinstance(owner, _LAYERS):
        leaf = _OLD.sub("", leaf)
    shape = _shape_of(owner, place.rpartition(".")[2], leaf, parameter)
    return Matrices(owner, place, shape) if shape is not None and min(shape[1:]) > 1 else None


def _shape_of(
    owner: nn.Module, last: str, leaf: str, parameter: nn.Parameter
) -> tuple[int, int, int] | None:
    if isinstance(owner, _NO_MAPS):
        return None
    first, entries = len(parameter), parameter[0].numel()
    kind = unsharded_type(owner)
    if isinstance(owner, _RECURRENT):
        return 1, first, entries  # with all gates: trains an LSTM better than each for itself
    if isinstance(owner, _LAYERS):
        return (1, first, entries) if leaf == "weight" else None
    own = f"{kind.__name__} {last} {leaf}".lower()
    says = _WEIGHT.search(leaf.lower()) is not None and _TABLE.search(own) is None
    if isinstance(owner, nn.Bilinear) or (says and not kind.__module__.startswith("torch.")):
        stacked = parameter.dim() == 3 and first > 1
        if stacked:
            return first, parameter.shape[1], parameter.shape[2]
        return (1, first, entries) if parameter.dim() == 2 else None
    return None
