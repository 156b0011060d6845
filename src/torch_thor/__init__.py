"""Natural-gradient training for PyTorch at about the cost per step of SGD."""

from torch_thor.base import Base
from torch_thor.coverage import Coverage, ParameterCoverage, Treatment
from torch_thor.distributed import Distributed
from torch_thor.divergence import LayerSplit, SplitMeasurement, measure_split
from torch_thor.errors import (
    CollectiveError,
    CurvatureError,
    CurvatureWarning,
    InvalidOptionError,
    NonFiniteGradientError,
    StateMismatchError,
)
from torch_thor.hardware import multiplies_bfloat16
from torch_thor.layers import Geometry, LayerAdapter, register_adapter
from torch_thor.memory import LayerMemory, MemoryReport
from torch_thor.options import Damping, Intervals, NormControl, Refresh, Statistics, Update
from torch_thor.policies import Decision, LayerDecision, TraceRule
from torch_thor.preconditioner import Preconditioner
from torch_thor.presets import EKFAC, KFAC, THOR
from torch_thor.sampling import RowPlan
from torch_thor.schedules import (
    Constant,
    ExponentialDamping,
    GrowingInterval,
    Piecewise,
    PolynomialDecay,
    WarmupPolynomialDecay,
)
from torch_thor.split import SplitCurves

__all__ = [
    "EKFAC",
    "KFAC",
    "THOR",
    "Base",
    "CollectiveError",
    "Constant",
    "Coverage",
    "CurvatureError",
    "CurvatureWarning",
    "Damping",
    "Decision",
    "Distributed",
    "ExponentialDamping",
    "Geometry",
    "GrowingInterval",
    "Intervals",
    "InvalidOptionError",
    "LayerAdapter",
    "LayerDecision",
    "LayerMemory",
    "LayerSplit",
    "MemoryReport",
    "NonFiniteGradientError",
    "NormControl",
    "ParameterCoverage",
    "Piecewise",
    "PolynomialDecay",
    "Preconditioner",
    "Refresh",
    "RowPlan",
    "SplitCurves",
    "SplitMeasurement",
    "StateMismatchError",
    "Statistics",
    "TraceRule",
    "Treatment",
    "Update",
    "WarmupPolynomialDecay",
    "measure_split",
    "multiplies_bfloat16",
    "register_adapter",
]
