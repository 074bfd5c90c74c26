"""An exponential moving average of a model's weights and buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bevkd_common.config.training import EmaConfig


class Ema:
    """`average = d * average + (1 - d) * weights`, with d rising to `decay`.

    Source: the decay `decay * (1 - exp(-updates / warmup))` is BEVDepth's and BEVDet's.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.updates = config.initial_updates
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @property
    def decay(self) -> float:
        """The decay of the current update."""
        return self.config.decay * (1.0 - math.exp(-self.updates / self.config.warmup_updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the model's weights to the average; counters are copied.

        The tensors are updated together: a few kernels on a GPU instead of one a tensor.
        """
        self.updates += 1
        state = model.state_dict()
        weights = [name for name, value in state.items() if value.is_floating_point()]
        counters = [name for name, value in state.items() if not value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[name] for name in weights], [state[name] for name in weights], 1.0 - self.decay
        )
        if counters:
            torch._foreach_copy_([self.average[name] for name in counters], [state[name] for name in counters])

    def load(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Restore a saved average."""
        self.updates = updates
        for name, value in average.items():
            self.average[name].copy_(value)
