"""Warnings that point at the user's own line."""

import sys
import warnings
from pathlib import Path

import torch

from torch_thor.options.errors import CurvatureWarning

_INSIDE = (f"{Path(__file__).parents[1]}/", f"{Path(torch.__file__).parent}/")


def warn(message: str) -> None:
    """Gives a ``CurvatureWarning`` at the innermost line outside of this package and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, CurvatureWarning, stacklevel=level + 1)
