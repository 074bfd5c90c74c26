"""The equations of UniDistill, one function each; pure functions of tensors.

Boxes and maps share the batch's LiDAR axes; maps are [B, C, Y, X], rows along y and columns along x. Losses come
back unweighted. Per-box losses are divided by the number of boxes, averaged over the processes of a distributed
run.

Source: UniDistill, CVPR 2023, arXiv 2303.15083; normalisers and constants are those of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.heads.center_targets import draw_gaussians, gaussian_radius
from bevkd_common.ops.normalizers import mean_over_ranks
from torch import Tensor
from torch.nn import functional as F

POINTS = 9
"""Crucial points of a box: four corners, the centre, four midpoints of edges."""
EPSILON = 1e-4
"""Added to norms, to counts of boxes, and to the sum of the response mask."""

_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0))


def crucial_points(boxes: Boxes) -> Tensor:
    """The nine points of each footprint, [B, M, 9, 2] metres: corners, centre, midpoints of the edges.

    Corners start at the rear right and go clockwise: rear left, front left, front right.

    Args:
        boxes: [B, M].

    Source: section 3.2.
    """
    front_left, rear_left, rear_right, front_right = boxes.bev_corners().unbind(-2)
    corners = torch.stack([rear_right, rear_left, front_left, front_right], dim=-2)
    middles = torch.stack([(corners[..., a, :] + corners[..., b, :]) / 2 for a, b in _EDGES], dim=-2)
    return torch.cat([corners, corners.mean(dim=-2, keepdim=True), middles], dim=-2)


def sample_map(features: Tensor, points: Tensor, grid: Grid, *, transposed: bool = False) -> Tensor:
    """Bilinear samples [B, M, P, C] of a map [B, C, Y, X] at points [B, M, P, 2] in metres; zero outside the map.

    Args:
        features: The map.
        points: x, y.
        grid: Cells of the map.
        transposed: Whether x and y are exchanged after they are normalised. Upstream: the released code does so,
            which reads the map of a box mirrored about the diagonal x = y.
    """
    if points.shape[1] == 0:
        return features.new_zeros((*points.shape[:-1], features.shape[1])) + 0 * features.sum()
    x0, y0, x1, y1 = grid.extent
    low, size = points.new_tensor([x0, y0]), points.new_tensor([x1 - x0, y1 - y0])
    where = 2 * (points - low) / size - 1
    if transposed:
        where = where.flip(-1)
    samples = F.grid_sample(features, where.to(features.dtype), align_corners=False)
    return samples.permute(0, 2, 3, 1)


def feature_loss(teacher: Tensor, student: Tensor, valid: Tensor) -> Tensor:
    """Feature distillation: the mean absolute difference of the points of a box, averaged over the boxes.

    Args:
        teacher: [B, M, P, C] samples of the low-level map.
        student: The same of the student, adapted.
        valid: [B, M] bool, False where padded.

    Source: equation 3.
    """
    return _mean_over_boxes((student - teacher).abs().mean(dim=(-2, -1)), valid)


def relations(samples: Tensor) -> Tensor:
    """Cosine similarities [B, M, P, P] between the points [B, M, P, C] of each box.

    Upstream: the epsilon is added to the norms, so that the diagonal is just below one.

    Source: equation 4.
    """
    directions = samples / (samples.norm(dim=-1, keepdim=True) + EPSILON)
    return directions @ directions.mT


def relation_loss(teacher: Tensor, student: Tensor, valid: Tensor) -> Tensor:
    """Relation distillation: the mean absolute difference of the relations of a box, averaged over the boxes.

    Args:
        teacher: [B, M, P, C] samples of the high-level map.
        student: The same of the student, adapted.
        valid: [B, M] bool, False where padded.

    Source: equation 5.
    """
    return _mean_over_boxes((relations(student) - relations(teacher)).abs().mean(dim=(-2, -1)), valid)


def response_mask(
    boxes: Boxes, valid: Tensor, grid: Grid, *, overlap: float, padding_stamps: bool = False
) -> Tensor:
    """Gaussians around box centres, [B, Y, X] float32 in [0, 1]; where they overlap the larger value counts.

    Args:
        boxes: [B, M].
        valid: [B, M] bool, False where padded.
        grid: Cells of the head's maps.
        overlap: IoU of a box shifted by the radius of its Gaussian; see `gaussian_radius`. The radius is rounded
            down and has no minimum, so that most objects get a single cell.
        padding_stamps: Whether padded rows draw a Gaussian at the origin of the axes. Upstream: the released code
            does so in every sample with fewer boxes than the batch's largest.

    Source: equation 7.
    """
    tensor = boxes.tensor
    position = (tensor[..., :2] - tensor.new_tensor([grid.x0, grid.y0])) / grid.cell
    cell = position.floor().long()
    inside = ((cell >= 0) & (cell < cell.new_tensor([grid.nx, grid.ny]))).all(dim=-1)
    drawn = inside if padding_stamps else inside & valid
    radius = gaussian_radius(boxes.w / grid.cell, boxes.l / grid.cell, overlap).floor().long()
    sample, row = drawn.nonzero(as_tuple=True)
    return draw_gaussians(sample, cell[sample, row], radius[sample, row], (len(valid), grid.ny, grid.nx))


def class_maximum(heatmaps: Sequence[Tensor], *, temperature: float, clamp: float) -> Tensor:
    """The largest class probability of each cell, [B, Y, X].

    Args:
        heatmaps: Logits [B, K, Y, X], one map for each task.
        temperature: The logits are divided by it.
        clamp: Probabilities keep this distance from 0 and 1.

    Source: equation 6.
    """
    logits = torch.cat(list(heatmaps), dim=1).amax(dim=1)
    return (logits / temperature).sigmoid().clamp(clamp, 1 - clamp)


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of errors [B, Y, X] with the weights of a mask, whose sum is averaged over the processes."""
    return (error * mask).sum() / (mean_over_ranks(mask.sum()) + EPSILON)


def _mean_over_boxes(losses: Tensor, valid: Tensor) -> Tensor:
    """Mean of losses [B, M] of the valid boxes; zero with a gradient of zero where there are none."""
    boxes = mean_over_ranks(valid.sum().to(losses.dtype))
    return torch.where(valid, losses, 0.0).sum() / (boxes + EPSILON)
