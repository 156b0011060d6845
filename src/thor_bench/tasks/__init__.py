"""The registry of workloads. A new one is a module and a line here."""

from thor_bench.errors import unknown_choice
from thor_bench.tasks.autoencoder import FASHION_AUTOENCODER
from thor_bench.tasks.cifar10 import CIFAR10_RESNET18
from thor_bench.tasks.depthwise import DEPTHWISE
from thor_bench.tasks.digits import DIGITS
from thor_bench.tasks.fashion import FASHION
from thor_bench.tasks.image_fit import IMAGE_FIT
from thor_bench.tasks.imagenet import IMAGENET_RESNET50
from thor_bench.tasks.lstm import LSTM_TEXT
from thor_bench.tasks.metamath import METAMATH
from thor_bench.tasks.pinn import PINN
from thor_bench.tasks.tabular import TABULAR
from thor_bench.tasks.text import TEXT_GPT
from thor_bench.tasks.unet import UNET
from thor_bench.tasks.vae import VAE_MLP
from thor_bench.tasks.vit import VIT
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
        METAMATH,
        LSTM_TEXT,
        VIT,
        DEPTHWISE,
        UNET,
        VAE_MLP,
        IMAGE_FIT,
        PINN,
        CIFAR10_RESNET18,
        IMAGENET_RESNET50,
    )
}


def find_workload(name: str, *, argument: str = "WORKLOAD") -> Workload:
    """Returns a workload by the name that a user gave for an argument.

    Raises:
        BenchError: There is none of that name.
    """
    if name not in WORKLOADS:
        raise unknown_choice(argument, name, WORKLOADS)
    return WORKLOADS[name]
