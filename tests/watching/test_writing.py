"""Statistics reach TensorBoard and what takes a dict, from whatever wraps an optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from helpers import data, mean_half_square, mlp
from torch_thor import THOR, InvalidOptionError, Preconditioner
from torch_thor.watching import watched, write
from torch_thor.watching.writing import checked_every

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="install the extra 'bench'"
)


def trained() -> tuple[nn.Module, THOR]:
    model = mlp()
    thor = THOR(model, norm_control="graft", interval=1)
    for _ in range(2):
        model.zero_grad()
        inputs, targets = data()
        mean_half_square(model(inputs), targets).backward()
        thor.step()
    return model, thor


def test_tensorboard_has_every_number_at_its_step(tmp_path: Path) -> None:
    _, thor = trained()
    report = thor.statistics()
    writer = SummaryWriter(tmp_path)
    write(report, writer)
    write(report, writer, 7)
    writer.close()
    read = event_accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    scalars = report.scalars()
    # TensorBoard's tags have no characters but those of names of files.
    assert len(read.Tags()["scalars"]) == len(scalars)
    for tag in read.Tags()["scalars"]:
        assert [event.step for event in read.Scalars(tag)] == [2, 7]
    (rank,) = [one.rank_a for one in report if one.name == "0"]
    tag = "rank of A/0".replace(" ", "_")
    names = [tag, "rank of A/0"]
    found = [name for name in names if name in read.Tags()["scalars"]]
    assert read.Scalars(found[0])[0].value == pytest.approx(rank)


class Wrap:
    """What Accelerate and others keep."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


def test_wraps_are_looked_through() -> None:
    _, thor = trained()
    assert watched(thor) is thor
    assert watched(Wrap(Wrap(thor))) is thor
    preconditioner = Preconditioner(mlp())
    assert watched(preconditioner) is preconditioner


def test_other_optimizers_are_none() -> None:
    around = Wrap(None)
    around.optimizer = around
    for other in (None, object(), Wrap(object()), around):
        assert watched(other) is None


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "50"])
def test_every_is_a_number_of_steps(every: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"every.*>= 1"):
        checked_every(every)
