"""A variational autoencoder of Fashion-MNIST, an MLP with 20 hidden variables."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.tasks import autoencoder
from thor_bench.tasks.pairs import Pairs
from thor_bench.tasks.task import Metric, Task

_PIXELS, _HIDDEN, _VARIABLES = 784, 400, 20


class VAE(nn.Module):
    """784-400-20-400-784 with ReLU (Kingma and Welling 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(_PIXELS, _HIDDEN)
        self.variables = nn.Linear(_HIDDEN, 2 * _VARIABLES)
        self.decoder = nn.Linear(_VARIABLES, _HIDDEN)
        self.head = nn.Linear(_HIDDEN, _PIXELS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[N, 784]`` to logits, means and logarithmic variances, ``[N, 784 + 2 · 20]``."""
        told = self.variables(functional.relu(self.encoder(inputs)))
        mean, log_variance = told.chunk(2, dim=1)
        stream = None if self.training else torch.Generator(inputs.device).manual_seed(0)
        noise = torch.randn(mean.shape, generator=stream, device=mean.device)
        drawn = mean + noise * (log_variance / 2).exp()
        logits = self.head(functional.relu(self.decoder(drawn)))
        return torch.cat([logits, told], dim=1)


def negative_elbo(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns cross-entropy plus divergence from the prior, of each image: ``[N]``."""
    logits, mean, log_variance = outputs.split((_PIXELS, _VARIABLES, _VARIABLES), dim=1)
    error = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    total: Tensor = error.sum(dim=1) + divergence.sum(dim=1)
    return total


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of the images' negative evidence lower bounds."""
    return negative_elbo(outputs, targets).mean()


_BOUND = Pairs(loss, negative_elbo)

VAE_MLP = Task(
    name="vae",
    description="Fashion-MNIST, variational autoencoder 784-400-20 and back, ReLU",
    input_summary="60,000 + 10,000 images of 784 pixels, as 4 IDX files",
    load=autoencoder.load,
    model=VAE,
    loss=_BOUND.loss,
    metric=Metric(
        name="negative ELBO",
        unit="nats",
        higher_is_better=False,
        score=_BOUND.judge,
        low=0.0,
        high=1000.0,
        digits=2,
    ),
    target=251.5,
    epochs=2,
    batch_size=128,
)
