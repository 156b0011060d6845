"""The registry of workloads. A new one is a module and a line here."""

from thor_bench.errors import unknown_choice
from thor_bench.tasks.autoencoder import FASHION_AUTOENCODER
from thor_bench.tasks.cifar10 import CIFAR10_RESNET18
from thor_bench.tasks.digits import DIGITS
from thor_bench.tasks.fashion import FASHION
from thor_bench.tasks.imagenet import IMAGENET_RESNET50
from thor_bench.tasks.tabular import TABULAR
from thor_bench.tasks.text import TEXT_GPT
from thor_bench.tasks.workload import ACCURACY, Likelihood, Metric, Workload

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
