"""The registry of workloads. A new one is a module and a line here."""

from torch_thor.bench.errors import unknown_choice
from torch_thor.bench.workloads.autoencoder import FASHION_AUTOENCODER
from torch_thor.bench.workloads.base import ACCURACY, Likelihood, Metric, Workload
from torch_thor.bench.workloads.cifar10 import CIFAR10_RESNET18
from torch_thor.bench.workloads.digits import DIGITS
from torch_thor.bench.workloads.fashion import FASHION
from torch_thor.bench.workloads.imagenet import IMAGENET_RESNET50
from torch_thor.bench.workloads.tabular import TABULAR
from torch_thor.bench.workloads.text import TEXT_GPT

__all__ = ["ACCURACY", "WORKLOADS", "Likelihood", "Metric", "Workload", "find_workload"]

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        DIGITS,
        TABULAR,
        FASHION,
        FASHION_AUTOENCODER,
        TEXT_GPT,
        CIFAR10_RESNET18,
        IMAGENET_RESNET50,
    )
}


def find_workload(name: str) -> Workload:
    """Returns a workload by its name.

    Raises:
        BenchError: There is none of that name.
    """
    if name not in WORKLOADS:
        raise unknown_choice("WORKLOAD", name, WORKLOADS)
    return WORKLOADS[name]
