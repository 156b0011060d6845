"""Files of data sets: where they stand, their download, and what is told where they are broken."""

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import DataSource

DOWNLOADS = Path.home() / ".cache" / "torch-thor"


def torchvision(part: str) -> Any:
    """Imports a module of torchvision, which is an extra.

    Raises:
        BenchError: It is not installed.
    """
    try:
        return import_module(f"torchvision.{part}")
    except ImportError as error:
        message = "this workload needs torchvision; pip install 'torch-thor[vision]'"
        raise BenchError(message) from error


@dataclass(frozen=True, kw_only=True)
class FileSet:
    """The files that together are a data set.

    Attributes:
        workload: Name of the workload, for messages.
        names: Names of the files.
        endings: What may follow a name.
        dataset: torchvision's class that downloads them, or None.
        folder: Where it puts them, below the folder of downloads.
        system: Folder of the system's package, or None.
        remedy: How to get them.
    """

    workload: str
    names: tuple[str, ...]
    endings: tuple[str, ...] = ("",)
    dataset: str | None = None
    folder: str
    system: Path | None = None
    remedy: str

    def find(self, source: DataSource) -> list[Path]:
        """Returns the files from the first folder that has them all.

        A folder that the user names is never replaced silently.

        Raises:
            BenchError: No folder has them, and they may not or cannot be downloaded.
        """
        base = source.directory or DOWNLOADS
        places = [base / self.folder, base]
        if source.directory is None and self.system is not None:
            places.insert(0, self.system)
        for place in places:
            found = [path for name in self.names if (path := self._file(place / name))]
            if len(found) == len(self.names):
                return found
        if source.download and self.dataset:
            self._download(base, self.dataset)
            return self.find(replace(source, download=False))
        names = ", ".join(
            name + "".join(f"[{end}]" for end in self.endings if end) for name in self.names
        )
        looked = ", ".join(map(str, places))
        message = f"{self.workload}: no complete set of {names} in {looked}"
        raise BenchError(f"{message}; {self.remedy}")

    def _file(self, stem: Path) -> Path | None:
        candidates = (stem.with_name(stem.name + ending) for ending in self.endings)
        return next((path for path in candidates if path.is_file()), None)

    def _download(self, base: Path, name: str) -> None:
        dataset = getattr(torchvision("datasets"), name)
        try:
            dataset(str(base), download=True)
        except (OSError, RuntimeError) as error:
            message = f"--download of {name} failed ({reason(error)}); name a --data-dir"
            raise BenchError(message) from error


def normalized(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Returns bytes ``[N, C, H, W]`` as floats, scaled to 0 … 1 and normalized by channel."""
    scaled = pixels.float().div_(255)
    return scaled.sub_(mean[:, None, None]).div_(std[:, None, None])
