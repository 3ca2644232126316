"""torch's number of threads while engines are open, and after they are closed in any order."""

from __future__ import annotations

import pytest
import torch

from tmi.runtime.bundle.reader import open_bundle
from tmi.runtime.engines.registry import open_engine
from tmi.runtime.engines.torch_threads import ThreadCount


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_latest_open_count_holds(order):
    """The latest count that is not released holds; after the last release, the first number is back."""
    torch.set_num_threads(2)
    counts = [ThreadCount(n) for n in (1, 3, 4)]
    left = [1, 3, 4]
    for number in order:
        assert torch.get_num_threads() == left[-1]
        counts[number].release()
        counts[number].release()
        left.remove(counts[number].threads)
    assert torch.get_num_threads() == 2


def test_engines_closed_out_of_order_restore_the_threads(nano_bundle):
    """Two engines that are closed in the order of their opening leave the process its number of threads."""
    torch.set_num_threads(3)
    bundle = open_bundle(nano_bundle)
    first, second = open_engine("torchscript", bundle, threads=1), open_engine("eager", bundle, threads=2)
    assert torch.get_num_threads() == 2
    first.close()
    assert torch.get_num_threads() == 2
    second.close()
    assert torch.get_num_threads() == 3
