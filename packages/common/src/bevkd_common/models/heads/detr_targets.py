"""Matching of queries and boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bevkd_common.models.heads.detr_code import MATCHED_CHANNELS
from bevkd_common.models.heads.detr_losses import FOCAL_ALPHA, FOCAL_GAMMA

LOG_MARGIN = 1e-12
BACKGROUND = -1
"""Box index and class of a query without a match."""


def matching_cost(
    logits: Tensor, code: Tensor, labels: Tensor, box_code: Tensor, class_cost: float, box_cost: float
) -> Tensor:
    """The cost of a match of each query with each box, [B, Q, M].

    Args:
        logits: [B, Q, K] of the classes.
        code: [B, Q, 10] predicted.
        labels: [B, M] int64, in [0, K).
        box_code: [B, M, 10] of the boxes.
        class_cost: Weight of `class_costs`.
        box_cost: Weight of the L1 distance of the codes without their velocities.

    Source: BEVFormer, after DETR3D.
    """
    of_labels = labels[:, None].expand(-1, logits.shape[1], -1)
    classes = class_costs(logits.float()).gather(2, of_labels)
    boxes = torch.cdist(code[..., :MATCHED_CHANNELS].float(), box_code[..., :MATCHED_CHANNELS].float(), p=1)
    return class_cost * classes + box_cost * boxes


def class_costs(logits: Tensor) -> Tensor:
    """The change of a query's focal loss if a class becomes its target, for each class of the logits."""
    p = logits.sigmoid()
    positive = -FOCAL_ALPHA * (1 - p).pow(FOCAL_GAMMA) * (p + LOG_MARGIN).log()
    negative = -(1 - FOCAL_ALPHA) * p.pow(FOCAL_GAMMA) * (1 - p + LOG_MARGIN).log()
    return positive - negative


def match(costs: Sequence[Tensor], learned: Tensor) -> list[Tensor]:
    """The assignment of queries and boxes with the least total cost, for each decoder layer.

    Every box gets one query. If there are fewer queries than boxes, every query gets one box, and the boxes that
    would cost most have no match. A cost that is not finite counts as the highest, so that a diverged prediction
    reaches the loss, where it is reported.

    Args:
        costs: One [B, Q, M] per layer.
        learned: [B, M] bool, the boxes that are matched.

    Returns:
        One [B, Q] int64 per layer: the box of each query, `BACKGROUND` where it has none.
    """
    if not costs:
        return []
    device = costs[0].device
    worst = torch.finfo(torch.float32).max
    table = torch.stack(list(costs)).nan_to_num(nan=worst, posinf=worst, neginf=worst).cpu().double()
    matched = torch.full(table.shape[:3], BACKGROUND)
    for sample, kept in enumerate(learned.cpu()):
        boxes = kept.nonzero()[:, 0]
        for layer in range(len(table)):
            queries, columns = linear_sum_assignment(table[layer, sample][:, boxes].numpy())
            matched[layer, sample, torch.from_numpy(queries)] = boxes[torch.from_numpy(columns)]
    return list(matched.to(device))
