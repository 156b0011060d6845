"""Which tensors go into one call, and that it makes no difference to the result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_thor.linalg import foreach
from torch_thor.linalg.foreach import ALL, Lot, Sorter, go_together, lots_of


class Special(nn.Parameter):
    """Exactly a Parameter, but by another name."""


def sparse() -> Tensor:
    return torch.eye(3).to_sparse()


def mkldnn() -> Tensor:
    """A layout of the CPU's."""
    return torch.ones(3, 3, device="cpu").to_mkldnn()


@pytest.mark.parametrize(
    "stranger",
    [
        pytest.param(lambda: Special(torch.ones(3)), id="subclass"),
        pytest.param(sparse, id="sparse"),
        pytest.param(mkldnn, id="mkldnn"),
        pytest.param(
            lambda: torch.ones(3, dtype=torch.cfloat, device="cpu"), id="complex on the CPU"
        ),
        pytest.param(lambda: torch.ones(3, device="meta"), id="a device without kernels for lists"),
    ],
)
def test_strangers_go_one_by_one_beside_the_others(stranger: object) -> None:
    assert callable(stranger)
    tensors = [torch.ones(2), stranger(), nn.Parameter(torch.ones(4))]
    assert lots_of(tensors) == (Lot((0, 2), together=True), Lot((1,), together=False))
    assert not go_together(tensors)


def test_a_stranger_in_either_list_is_enough() -> None:
    weights, gradients = [torch.ones(3), torch.ones(3, 3)], [torch.ones(3), sparse()]
    assert [lot.together for lot in lots_of(weights, gradients)] == [True, False]


def test_types_go_each_in_a_call_of_its_own() -> None:
    tensors = [torch.ones(2), torch.ones(2).double(), torch.ones(3), torch.ones(2).bfloat16()]
    assert [lot.places for lot in lots_of(tensors)] == [(0, 2), (1,), (3,)]
    assert all(lot.together for lot in lots_of(tensors))


def test_lists_that_are_alike_go_as_they_are() -> None:
    tensors = [torch.ones(2), torch.ones(3)]
    assert lots_of(tensors) == ALL
    assert lots_of(tensors, tensors)[0].take(tensors) is tensors
    assert go_together(tensors)
    assert lots_of([]) == ()


def test_lots_are_found_again_only_where_kinds_change() -> None:
    sorter = Sorter()
    known = sorter.sort([torch.ones(2), torch.ones(3)])
    assert sorter.sort([torch.zeros(2), torch.zeros(3)]) is known
    for changed in (torch.ones(3).double(), sparse(), Special(torch.ones(3))):
        assert sorter.sort([torch.ones(2), changed]) is not known


def mixed() -> list[Tensor]:
    torch.manual_seed(3)
    kinds = (torch.float32, torch.float64, torch.cfloat, torch.float32, torch.bfloat16)
    return [torch.randn(4, dtype=kind) for kind in kinds]


def test_operations_do_what_each_tensor_alone_would() -> None:
    """By powers of two, so that nothing rests on how types are rounded."""
    ours, others, plain = mixed(), [2 * tensor for tensor in mixed()], mixed()
    lots = lots_of(ours)
    for found, x, y in zip(foreach.add(lots, ours, others, alpha=0.5), plain, others, strict=True):
        assert torch.equal(found, torch.add(x, y, alpha=0.5))
    foreach.add_(lots, ours, others, alpha=-0.5)
    foreach.mul_(lots, ours, 0.5)
    for mine, x, y in zip(ours, plain, others, strict=True):
        assert torch.equal(mine, x.add(y, alpha=-0.5).mul(0.5))


def test_norms_are_those_of_all_entries() -> None:
    tensors = [*mixed(), sparse(), mkldnn()]
    found = sorted(float(length) for length in foreach.norms(lots_of(tensors), tensors))
    dense = [tensor.to_dense().to(torch.complex128) for tensor in tensors]
    torch.testing.assert_close(
        found, sorted(float(tensor.norm()) for tensor in dense), rtol=1e-6, atol=0
    )
