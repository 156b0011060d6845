"""torchvision: ``thor compare examples/tasks/images.py --optimizers thor,muon,adamw``.

A data set and a model of torchvision. ``FakeData`` needs no download: random images that are to be
learned by heart. Put ``datasets.CIFAR10(root, train=True, download=True, ...)`` in its place.
"""

from torch.nn import functional
from torchvision import datasets, models, transforms

from thor_bench import Metric, Task


def loss(model, batch):
    """Cross-entropy of the classes."""
    images, labels = batch
    return functional.cross_entropy(model(images), labels)


def accuracy(model, batch):
    """100 for each image whose class is right."""
    images, labels = batch
    return 100.0 * (model(images).argmax(dim=1) == labels).float()


def task():
    """128 images of 32×32 pixels; every epoch draws its order, and augmentation where there is."""
    images = datasets.FakeData(128, (3, 32, 32), num_classes=10, transform=transforms.ToTensor())
    return Task(
        model=lambda: models.shufflenet_v2_x0_5(num_classes=10),
        loss=loss,
        train=images,
        test=images,
        batch_size=32,
        epochs=4,
        metric=Metric(name="accuracy", unit="%", score=accuracy, higher_is_better=True),
    )
