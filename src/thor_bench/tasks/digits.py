"""scikit-learn's 8×8 digits: embedded in the package, trains in seconds."""

import torch

from thor_bench.records.config import DataSource
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.models import digit_convnet
from thor_bench.tasks.pairs import ACCURACY, CLASSES
from thor_bench.tasks.task import Task

_TEST_SHARE = 0.4
_SPLIT_SEED = 0
_BRIGHTEST = 16.0


def load(_source: DataSource) -> TrainTest[TensorSplit]:
    """Returns the 1,797 digits, divided by class into 60 % training and 40 % test samples."""
    # Imported here: scikit-learn takes a second to load, which other commands need not wait for.
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=_TEST_SHARE, random_state=_SPLIT_SEED, stratify=labels
    )

    def split(inputs: object, targets: object) -> TensorSplit:
        pixels = torch.as_tensor(inputs, dtype=torch.float32).reshape(-1, 1, 8, 8)
        return TensorSplit(pixels / _BRIGHTEST * 2 - 1, torch.as_tensor(targets))

    return TrainTest(split(train_x, train_y), split(test_x, test_y))


DIGITS = Task(
    name="digits",
    description="handwritten digits of scikit-learn, small convnet with BatchNorm",
    input_summary="1,078 + 719 images of 1×8×8, 10 classes, embedded",
    load=load,
    model=digit_convnet,
    loss=CLASSES.loss,
    metric=ACCURACY,
    target=98.0,
    epochs=10,
    batch_size=64,
)
