"""Natural-gradient training for PyTorch at about the cost per step of SGD."""

from torch_thor.capture.coverage import Coverage, ParameterCoverage, Treatment
from torch_thor.curvature.measure import LayerSplit, SplitMeasurement, measure_split
from torch_thor.curvature.memory import LayerMemory, MemoryReport
from torch_thor.curvature.report import LayerNumbers, StatisticsReport
from torch_thor.curvature.split import SplitCurves
from torch_thor.layers import Geometry, LayerAdapter, register_adapter
from torch_thor.layers.rows import RowPlan
from torch_thor.least_squares.fields import Derivatives, derivatives
from torch_thor.least_squares.optimizer import GaussNewton
from torch_thor.least_squares.search import StepReport
from torch_thor.linalg.timing import multiplies_bfloat16
from torch_thor.optimizers import EKFAC, KFAC, THOR
from torch_thor.options.curvature import Damping, Intervals, Refresh, Statistics
from torch_thor.options.distributed import Distributed
from torch_thor.options.errors import (
    CollectiveError,
    CurvatureError,
    CurvatureWarning,
    InvalidOptionError,
    NonFiniteGradientError,
    StateMismatchError,
)
from torch_thor.options.norm_control import NormControl
from torch_thor.options.schedules import (
    Constant,
    ExponentialDamping,
    GrowingInterval,
    Piecewise,
    PolynomialDecay,
    WarmupPolynomialDecay,
)
from torch_thor.options.trace_rule import Decision, LayerDecision, TraceRule
from torch_thor.options.update import Base, Update
from torch_thor.preconditioner import Preconditioner

__version__ = "0.2.0"

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
    "Derivatives",
    "Distributed",
    "ExponentialDamping",
    "GaussNewton",
    "Geometry",
    "GrowingInterval",
    "Intervals",
    "InvalidOptionError",
    "LayerAdapter",
    "LayerDecision",
    "LayerMemory",
    "LayerNumbers",
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
    "StatisticsReport",
    "StepReport",
    "TraceRule",
    "Treatment",
    "Update",
    "WarmupPolynomialDecay",
    "derivatives",
    "measure_split",
    "multiplies_bfloat16",
    "register_adapter",
]
