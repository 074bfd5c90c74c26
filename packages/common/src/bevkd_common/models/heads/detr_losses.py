"""Losses of the query head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

FOCAL_ALPHA = 0.25
"""Weight of a query's own class; the weight of all other classes is 1 - FOCAL_ALPHA."""
FOCAL_GAMMA = 2.0


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of independent classes, summed over queries and classes.

    Args:
        logits: [B, Q, K]; converted to float32.
        labels: [B, Q] int64, -1 for background: all classes are negative.

    Source: RetinaNet, arXiv 1708.02002, as in BEVFormer.
    """
    target = F.one_hot(labels + 1, logits.shape[-1] + 1)[..., 1:]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return sigmoid_focal_loss(logits, target.to(logits.dtype), FOCAL_ALPHA, FOCAL_GAMMA, reduction="sum")
