"""Pillars, one convolution over the BEV map, and an anchor head with an anchor of each class in each cell."""

from functools import partial
from typing import NamedTuple

import torch
from bevkd_common.data.needs import LIDAR, DataNeeds
from bevkd_common.geometry.bev import cell_centers
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Detections, Losses, Outputs, Term
from bevkd_common.models.heads.anchor_code import ANCHOR_CODE, anchors_on, by_anchor, decode, encode
from bevkd_common.models.pillars import PillarFeatureNet, scatter_to_bev
from bevkd_common.models.taps import AnchorMaps, BevMap, Tokens
from bevkd_common.models.tokens import TokenFeatures
from bevkd_common.ops.nms import rotated_overlaps, suppress
from bevkd_common.ops.voxelize import VoxelSpec
from torch import Tensor, nn
from torch.nn import functional as F

GRID = Grid(-4.0, -4.0, 0.5, 16, 16)
PILLARS = VoxelSpec(range_min=(-4.0, -4.0, -1.0), range_max=(4.0, 4.0, 3.0), size=(0.5, 0.5, 4.0))
ANCHORS = ((0.5, 1.8, 0.9, 1.0, 0.0), (0.8, 0.6, 0.6, 1.6, 0.0))


class AnchorTargets(NamedTuple):
    wanted: Tensor  # [B, N, K] one where an anchor has a box of the class
    code: Tensor  # [B, N, 7]


class ToyDetector(nn.Module):
    needs = DataNeeds(clouds=frozenset({LIDAR}))

    def __init__(self, channels, classes):
        super().__init__()
        self.reader = PillarFeatureNet(PILLARS, 3, channels, norm_momentum=0.1)
        self.bev = nn.Conv2d(channels, channels, 3, padding=1)
        widths = {"class_logits": len(ANCHORS) * len(classes), "box_code": len(ANCHORS) * 7}
        self.head = nn.ModuleDict({name: nn.Conv2d(channels, width, 1) for name, width in widths.items()})
        nn.init.constant_(self.head["class_logits"].bias, -2.0)
        self.register_buffer("anchors", anchors_on(GRID, ANCHORS).tensor, persistent=False)
        self.taps = {
            "pillars": Tokens(channels, rows=(LIDAR, PILLARS), columns=("x", "y"), unit="metres"),
            "bev": BevMap(channels, GRID, "relu"),
            "head": AnchorMaps(GRID, classes, len(ANCHORS), ANCHOR_CODE),
        }

    @property
    def parts(self):
        return {"reader": self.reader, "bev": self.bev, "head": self.head}

    def forward(self, batch, want, state=None):
        voxels = batch.cloud(LIDAR).voxels(PILLARS)
        features, where = self.reader(voxels), voxels.coordinates
        counts = tuple(where[:, 0].bincount(minlength=len(batch)).tolist())
        centers = cell_centers(GRID, where.device)[where[:, 2], where[:, 3]]
        tokens, taps, head = {"pillars": TokenFeatures(features, centers, counts, voxels.counts)}, {}, []
        if want & {"bev", "head"}:
            taps["bev"] = self.bev(scatter_to_bev(features, where, len(batch), GRID.ny, GRID.nx)).relu()
        if "head" in want:
            head = [{name: conv(taps["bev"]) for name, conv in self.head.items()}]
        return Outputs(taps, head, tokens=tokens)

    def targets(self, outputs, batch):
        """An anchor has the nearest box of its class if that is nearer than 0.6 m."""
        boxes, labels = F.pad(batch.boxes.tensor, (0, 0, 0, 1), value=1.0), F.pad(batch.labels, (0, 1), value=-1)
        classes = torch.arange(len(self.anchors), device=batch.device) % len(ANCHORS)
        distance = torch.cdist(self.anchors[:, :2].expand(len(batch), -1, -1), boxes[..., :2])
        distance, nearest = distance.masked_fill(classes[:, None] != labels[:, None], torch.inf).min(dim=2)
        wanted = F.one_hot(classes) * (distance < 0.6)[..., None]
        matched = boxes.gather(1, nearest[..., None].expand(-1, -1, boxes.shape[-1]))
        return AnchorTargets(wanted.float(), encode(Boxes(matched), Boxes(self.anchors)))

    def losses(self, outputs, targets, batch):
        logits, code = (by_anchor(outputs.head[0][name].float(), len(ANCHORS)) for name in self.head)
        positive, count = targets.wanted.any(dim=-1), targets.wanted.sum().clamp(min=1)
        focal = (targets.wanted - logits.detach().sigmoid()).square()
        classes = F.binary_cross_entropy_with_logits(logits, targets.wanted, focal, reduction="sum")
        boxes = F.smooth_l1_loss(code[positive], targets.code[positive], reduction="sum", beta=0.1)
        return Losses({"classes": Term(classes / count), "boxes": Term(boxes / count)}, {"positives": count})

    def decode(self, outputs, batch):
        logits, code = (by_anchor(outputs.head[0][name].float(), len(ANCHORS)) for name in self.head)
        scores, labels = logits.sigmoid().max(dim=-1)
        found = []
        for row, best in enumerate(scores.topk(64, dim=1).indices):
            boxes = decode(code[row, best], Boxes(self.anchors[best]))
            kept = suppress(boxes, scores[row, best] > 0.1, partial(rotated_overlaps, iou=0.1))
            found.append(Detections(boxes[kept], scores[row, best][kept], labels[row, best][kept]))
        return found


def build(config, classes):
    return ToyDetector(config.channels, classes)
