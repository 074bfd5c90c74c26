"""What losses are divided by."""

from __future__ import annotations

import torch.distributed
from torch import Tensor


def mean_over_ranks(counts: Tensor) -> Tensor:
    """Counts averaged over the processes of a distributed run; unchanged in a single process.

    Losses that divide by a count of positives divide by this, so that N processes with a batch of B give the
    gradient of one process with a batch of N·B.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts
    total = counts.detach().clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
