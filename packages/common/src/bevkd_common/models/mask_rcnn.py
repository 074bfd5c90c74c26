"""Mask R-CNN of torchvision as a source of instance masks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.data.sensor_files import SensorFiles
from bevkd_common.data.virtual_points.instances import Instances
from bevkd_common.errors import UserError
from bevkd_common.models.foreign_files import read_checkpoint
from bevkd_common.models.state_dicts import mismatches

CLASS_OF_COCO = {1: "pedestrian", 2: "bicycle", 3: "car", 4: "motorcycle", 6: "bus", 8: "truck"}
"""nuScenes class of a COCO category; the other four have none, and so no virtual points."""

BUILDERS: tuple[tuple[Callable[..., nn.Module], float], ...] = (
    (maskrcnn_resnet50_fpn, 0.0),
    (maskrcnn_resnet50_fpn_v2, 1e-5),
)
"""Its two versions, and the epsilon of the norms with which their published weights go."""

LEAST_SCORE, LEAST_PROBABILITY = 0.3, 0.5
"""Of an instance, and of a pixel of its mask."""


@dataclass(frozen=True)
class MaskRcnn:
    """Finds instances with a detector that was trained on COCO.

    Attributes:
        root: Folder of the data set.
        model: In eval mode; takes images [3, H, W] in [0, 1] as torchvision's detectors do.
        weights_hash: Of the file it was loaded from.
    """

    root: Path
    model: nn.Module
    weights_hash: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `MaskSource`."""
        return {"masks": "mask_rcnn", "weights_sha256": self.weights_hash, "least_score": LEAST_SCORE}

    @property
    def sentence(self) -> str:
        """See `MaskSource`."""
        return (
            f"masks of torchvision's Mask R-CNN (weights {self.weights_hash[:12]}), which knows "
            f"{', '.join(CLASS_OF_COCO.values())}"
        )

    @torch.no_grad()
    def instances(self, image: str, scene: str, size: tuple[int, int]) -> Instances:
        """See `MaskSource`."""
        pixels = SensorFiles(self.root, cache=False).image(image)
        if pixels.shape[:2] != size:
            raise UserError(
                f"{self.root / image} has {pixels.shape[:2]} pixels, the tables {size}; unpack it again"
            )
        device = next(self.model.parameters()).device
        (answer,) = self.model([torch.tensor(pixels, device=device).permute(2, 0, 1) / 255])
        found = {name: value.cpu() for name, value in answer.items()}
        known = torch.tensor([label in CLASS_OF_COCO for label in found["labels"].tolist()], dtype=torch.bool)
        kept = known & (found["scores"] >= LEAST_SCORE)
        labels = [CLASSES.index(CLASS_OF_COCO[label]) for label in found["labels"][kept].tolist()]
        masks = found["masks"][kept, 0] >= LEAST_PROBABILITY
        scores = found["scores"][kept].double()
        return Instances.of_masks(masks.numpy(), np.array(labels, dtype=np.int64), scores.numpy())


def load_mask_rcnn(root: Path, weights: Path, device: torch.device) -> MaskRcnn:
    """Mask R-CNN with weights of torchvision, of either version.

    Raises:
        UserError: If the file is missing or holds anything else.
    """
    state = read_checkpoint(weights)
    problems: list[list[str]] = []
    for build, eps in BUILDERS:
        model = build(weights=None, weights_backbone=None)
        own = model.state_dict()
        # Older files do not count the batches of a norm, which nothing here asks for.
        filled = {key: value for key, value in own.items() if key.endswith(".num_batches_tracked")} | state
        problems.append(mismatches(own, filled))
        if not problems[-1]:
            model.load_state_dict(filled)
            for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
                norm.eps = eps
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            return MaskRcnn(root, model.to(device).eval(), digest)
    raise UserError(
        f"{weights} does not fit torchvision's Mask R-CNN; take the file that torchvision names for "
        "`maskrcnn_resnet50_fpn`, or for its second version:\n  " + "\n  ".join(sorted(problems, key=len)[0])
    )
