"""The workloads that came with the league: their data, their models, their metrics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from formats import write_fashion
from thor_bench.errors import BenchError
from thor_bench.optimizers.peer import Training
from thor_bench.optimizers.peers import muon
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.tasks import find_task, metamath, pinn, unet, vae
from thor_bench.tasks.data import TensorSplit
from thor_bench.tasks.equations import sines
from thor_bench.training.session import Session

if TYPE_CHECKING:
    from pathlib import Path

PROOF = "$c ( ) -> wff $.\n$v ph $.  wph $f wff ph $.  id $p |- ( ph -> ph ) $= ABZ $.\n"
TASKS = ("vit", "depthwise", "unet", "vae", "lstm", "metamath", "image-fit", "pinn")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    """A folder with a little of each real format."""
    folder = tmp_path_factory.mktemp("data")
    write_fashion(folder, train=8, test=4)
    (folder / "set.mm").write_text(PROOF * 60, encoding="ascii")
    return DataSource(folder)


@pytest.mark.parametrize("optimizer", ["thor", "adamw"])
@pytest.mark.parametrize("name", TASKS)
def test_it_trains_untuned_and_is_judged(name: str, optimizer: str, source: DataSource) -> None:
    workload = find_task(name)
    options = RunOptions(batch_size=4, preset="defaults")
    session = Session(plan_run(workload, optimizer, seed=0, options=options), workload, source)
    before = [parameter.clone() for parameter in session.model.parameters()]
    for batch, _ in zip(session.data.batches(0), range(2), strict=False):
        session.update(session.loss(batch))
    pairs = zip(before, session.model.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in pairs)
    test_loss, value = session.evaluate()
    assert test_loss is not None
    assert math.isfinite(test_loss)
    assert workload.metric.range[0] <= value
    assert session.evaluate() == (test_loss, value)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("vit", {"places", "head"}),
        ("unet", {"head"}),
        ("lstm", {"symbols", "head"}),
        ("pinn", {"net.6"}),
        ("vae", {"head"}),
    ],
)
def test_muon_leaves_inputs_that_are_looked_up_and_the_head(name: str, others: set[str]) -> None:
    model = find_task(name).build()
    hidden, _ = muon.divided(Training(model, 1), muon.MuonSettings())
    matrices = {key for key, value in model.named_parameters() if value.dim() >= 2}
    ids = {id(parameter) for parameter in hidden}
    left = {key for key, value in model.named_parameters() if id(value) not in ids} & matrices
    assert left == {f"{key}.weight" for key in others}


def test_metamath_is_cut_into_windows_of_the_next_character(source: DataSource) -> None:
    data = metamath.load(source)
    whole = (PROOF * 60).encode()
    assert bytes(data.train.inputs[0].tolist()) == whole[:128]
    assert torch.equal(data.train.inputs[:, 1:], data.train.targets[:, :-1])
    border = int(0.9 * len(whole))
    assert bytes(data.test.inputs[0].tolist()) == whole[border : border + 128]


def test_metamath_says_how_to_get_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match=r"no complete set of set\.mm in .*apt install metamath"):
        metamath.load(DataSource(tmp_path, download=True))
    for content, told in ((PROOF, "shorter than 20 windows"), ("é" * 3000, "no readable database")):
        (tmp_path / "set.mm").write_text(content, encoding="utf-8")
        with pytest.raises(BenchError, match=told):
            metamath.load(DataSource(tmp_path))
    (tmp_path / "set.mm").write_text(PROOF * 60, encoding="ascii")
    monkeypatch.setattr(metamath, "FILES", replace(metamath.FILES, system=tmp_path))
    assert len(metamath.load(DataSource()).train)


def test_noise_is_fresh_in_every_epoch_and_a_rank_has_its_part() -> None:
    split = unet.NoisySplit(torch.rand(6, 1, 28, 28))
    picks = {3: torch.arange(6)}

    def read(epoch: int, part: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        (batch,) = split.read(picks, part=part, seed=(0, epoch), pin=False)
        return batch

    inputs, noise = read(0)
    share = inputs[:, 1:]
    assert torch.allclose(inputs[:, :1], split.images * (1 - share) + noise * share)
    assert torch.equal(read(0)[1], noise)
    assert not torch.equal(read(1)[1], noise)
    assert torch.equal(read(0, slice(2, 4))[0], inputs[2:4])


def test_the_equation_holds_for_its_solution() -> None:
    class Exact(torch.nn.Module):
        def forward(self, points: torch.Tensor) -> torch.Tensor:
            return sines(points)

    field = pinn.Field()
    field.net = Exact()  # type: ignore[assignment]
    data = pinn.load(DataSource())
    inputs, targets = data.train.inputs[:64], data.train.targets[:64]
    assert pinn.residual(field(inputs), targets).item() < 1e-6
    on_border = (inputs[:, 2:] == 0) | (inputs[:, 2:] == 1)
    assert on_border.any(dim=1).all()
    field.eval()
    grid = data.test.inputs
    assert pinn.residual(field(grid), data.test.targets).item() == 0
    metric = find_task("pinn").metric
    half = pinn.relative_square(data.test.targets / 2, data.test.targets).mean().item()
    assert metric.of_mean(half) == pytest.approx(0.5, rel=1e-4)


def test_the_vae_is_judged_by_its_bound() -> None:
    outputs = torch.cat([torch.zeros(1, 784), torch.full((1, 20), 2.0), torch.zeros(1, 20)], dim=1)
    by_hand = 784 * math.log(2) + 20 * 0.5 * 4
    assert vae.negative_elbo(outputs, torch.zeros(1, 784)).item() == pytest.approx(by_hand)


def test_the_photograph_is_judged_in_decibels_between_its_training_pixels() -> None:
    workload = find_task("image-fit")
    data = workload.data(DataSource())
    assert isinstance(data.train, TensorSplit)
    assert isinstance(data.test, TensorSplit)
    assert data.train.inputs.shape[1] == 2
    train = {tuple(place) for place in data.train.inputs.tolist()}
    assert not any(tuple(place) in train for place in data.test.inputs.tolist())
    assert workload.metric.of_mean(0.01) == pytest.approx(20)
