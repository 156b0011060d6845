"""The clock's first step is nobody's: a process wakes before a run."""

import torch

from thor_bench.training.timing import wake


def test_waking_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    wake.cache_clear()
    wake(torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
    assert wake.cache_info().misses == 1
    wake(torch.device("cpu"))
    assert wake.cache_info().misses == 1  # once for a process
