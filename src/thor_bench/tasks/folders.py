"""Images in one folder per class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from thor_bench.errors import BenchError, readable, reason
from thor_bench.tasks.files import torchvision
from thor_bench.tasks.samples import Samples, default_workers

_TEST_BATCH = 64
_REMEDY = "replace the file or remove it"


class FolderSplit(Samples):
    """Images in one folder per class; classes count in the order of the folders' names.

    Args:
        directory: Folder of the classes' folders.
        transform: ``PIL image -> [3, H, W]``; may draw from torch's global generator.
        workers: Processes that read; 0 reads in this one, None takes one per core.

    Attributes:
        classes: Names of the classes.

    Raises:
        BenchError: There is no image.
    """

    def __init__(
        self, directory: Path, transform: Callable[[Any], Tensor], workers: int | None
    ) -> None:
        try:
            images = torchvision("datasets").ImageFolder(str(directory), transform)
        except OSError as error:
            raise BenchError(f"{directory} holds no images ({reason(error)[:120]})") from error
        super().__init__(
            images,
            test_batch=_TEST_BATCH,
            workers=default_workers() if workers is None else workers,
        )
        self.classes: list[str] = images.classes

    def sample(self, index: int) -> tuple[Tensor, int]:
        """Reads an image and its class.

        Raises:
            BenchError: The file is no image.
        """
        with readable(Path(self.dataset.samples[index][0]), "image", _REMEDY):
            image, label = self.dataset[index]
        return image, int(label)
