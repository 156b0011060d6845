"""Data-parallel curvature on torch.distributed: factors are averaged, inverses never."""

from torch_thor.distributed.communicator import Communicator, Local, Part
from torch_thor.distributed.data_parallel import DataParallel, communicator_for
from torch_thor.distributed.evidence import Evidence
from torch_thor.distributed.joining import UnevenInputs
from torch_thor.distributed.options import Distributed

__all__ = [
    "Communicator",
    "DataParallel",
    "Distributed",
    "Evidence",
    "Local",
    "Part",
    "UnevenInputs",
    "communicator_for",
]
