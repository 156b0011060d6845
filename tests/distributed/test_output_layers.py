"""All ranks have the same output layers, whoever saw a backward first, without a message more."""

from __future__ import annotations

import torch

from output_ranks import trained
from ranks import on_ranks


def test_ranks_agree_without_a_message_more() -> None:
    plain, found = (on_ranks(2, trained, outputs) for outputs in (False, True))
    for left, weights, _ in found:
        assert left == ["2.weight", "2.bias"]
        assert all(map(torch.equal, weights, found[0][1]))
    assert [one[2] for one in found] <= [one[2] for one in plain]
