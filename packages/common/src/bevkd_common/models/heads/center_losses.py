"""Losses of the centre-point head."""

from __future__ import annotations

import torch
from torch import Tensor

CLIP = 1e-4


def gaussian_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Penalty-reduced focal loss, summed.

    `-(1 - p)² log p` where the target is 1, `-(1 - t)⁴ p² log(1 - p)` elsewhere, with p clipped to
    [1e-4, 1 - 1e-4].

    Args:
        logits: Any shape; taken to float32.
        target: Gaussians in [0, 1], same shape.

    Source: CornerNet, equation 1, with α = 2, β = 4; the clip from mmdet3d 1.4.
    """
    p = logits.float().sigmoid().clamp(CLIP, 1 - CLIP)
    positive = -(1 - p).square() * p.log()
    negative = -(1 - target).pow(4) * p.square() * (1 - p).log()
    return torch.where(target == 1, positive, negative).sum()


def code_loss(prediction: Tensor, target: Tensor, mask: Tensor, code_weights: Tensor) -> Tensor:
    """Weighted L1 distance of box codes, summed; numbers whose target is NaN do not count.

    Args:
        prediction: [B, M, 10].
        target: [B, M, 10] float32, the precision of the loss.
        mask: [B, M] bool, the boxes that count.
        code_weights: [10].
    """
    counts = mask[..., None] & ~target.isnan()
    distance = (prediction - target.nan_to_num()).abs() * code_weights
    return torch.where(counts, distance, 0.0).sum()
