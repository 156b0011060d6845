"""Geometry of the layer types: how a module's call becomes rows and matrices."""

from torch_thor.layers.adapter import LayerAdapter, Part
from torch_thor.layers.attention import ProjectionWatch
from torch_thor.layers.geometry import Geometry
from torch_thor.layers.layout import read_matrices, write_matrices
from torch_thor.layers.registry import adapter_for, parts_of, reason_against, register_adapter

__all__ = [
    "Geometry",
    "LayerAdapter",
    "Part",
    "ProjectionWatch",
    "adapter_for",
    "parts_of",
    "read_matrices",
    "reason_against",
    "register_adapter",
    "write_matrices",
]
