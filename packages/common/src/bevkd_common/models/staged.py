"""Networks of parts that follow each other, of which some give a feature map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class StagedNetwork(nn.ModuleDict):
    """Parts in the order in which they run.

    Args:
        parts: By name.
        levels: The parts whose outputs are wanted, finest first.
        recompute: Whether blocks are computed again in the backward pass, one at a time, instead of keeping what is
            in them; a part that is no chain of blocks counts as one.
    """

    def __init__(self, parts: Mapping[str, nn.Module], levels: Sequence[str], *, recompute: bool = False) -> None:
        super().__init__(dict(parts))
        self.levels = tuple(levels)
        self.recompute = recompute
        if recompute:
            for part in filter(_has_switch, self.values()):
                cast("Any", part).grad_checkpointing = True

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of the levels, finest first, of images [B, 3, H, W]."""
        maps = []
        for name, part in self.items():
            again = self.recompute and torch.is_grad_enabled() and not _has_switch(part)
            x = _again_by_blocks(part, x) if again else part(x)
            if name in self.levels:
                maps.append(x)
        return maps


class ChannelsLastLevels(nn.Module):
    """The levels of a Swin transformer, each behind a norm of its own, with channels first.

    Args:
        stages: Gives maps [B, H, W, C], finest first.
        channels: Of each level.

    Source: Swin transformer (arXiv 2103.14030) as a detector's backbone.
    """

    def __init__(self, stages: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.stages = stages
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps [B, C, H, W], finest first, of images [B, 3, H, W]."""
        pairs = zip(self.norms, self.stages(images), strict=True)
        return [norm(level).permute(0, 3, 1, 2).contiguous() for norm, level in pairs]


def _has_switch(part: nn.Module) -> bool:
    """Whether timm computes the part's blocks again; it would count the statistics of batch norms twice."""
    return hasattr(part, "grad_checkpointing") and not _norms(part)


def _again_by_blocks(part: nn.Module, x: Tensor) -> Tensor:
    for block in _blocks(part):
        x = _computed_again(block, x) if any(block.children()) else block(x)
    return x


def _blocks(part: nn.Module) -> list[nn.Module]:
    inside = list(part.children())
    chain = isinstance(part, nn.Sequential) and all(any(block.children()) for block in inside)
    return inside if chain else [part]


def _computed_again(part: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(part)

    out: Tensor = checkpoint(part, x, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _statistics_kept(part: nn.Module) -> Iterator[None]:
    """Batch norms use the batch's statistics without counting them a second time."""
    norms = _norms(part)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    counts = [None if count is None else count.clone() for _, count in before]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, counter), count in zip(norms, before, counts, strict=True):
            norm.momentum = momentum
            if counter is not None and count is not None:
                counter.copy_(count)


def _norms(part: nn.Module) -> list[_BatchNorm]:
    return [module for module in part.modules() if isinstance(module, _BatchNorm)]
