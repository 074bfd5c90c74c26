"""BEVDet4D: BEVDet that sees an earlier frame too.

Source: BEVDet4D (arXiv 2203.17054), numerics of its released R50 detector.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bevkd_common.config.bevdet4d import BevDet4dConfig
from bevkd_common.data.needs import AdjacentFrames, DataNeeds
from bevkd_common.data.samples import Batch, Cameras, History
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.bev_encoders import bev_stage
from bevkd_common.models.detector import Detections, Outputs, Targets
from bevkd_common.models.detectors.bevdet import BevDet, parts
from bevkd_common.ops.bev_warp import warp_bev


class BevDet4d(BevDet):
    """The maps of two frames, the earlier one moved with the ego, side by side through BEVDet's encoder.

    Each frame is lifted in its own LiDAR axes. The earlier one gets no gradient; batch norm sees it.

    Upstream: the earlier images are lifted with the matrices of the present ones, here each image has its own.

    Args:
        frame_stage: What the map of each frame passes.
        alignment: See `warp_bev`.
        motion: What the head learns in place of the velocity.
        history: Which frame it is.
        bevdet: The parts of BEVDet, whose encoder takes twice the channels.
    """

    def __init__(
        self,
        *,
        frame_stage: nn.Module,
        alignment: Literal["corner", "center"],
        motion: Literal["displacement", "velocity"],
        history: AdjacentFrames,
        **bevdet: Any,
    ) -> None:
        super().__init__(**bevdet)
        self.frame_stage = frame_stage
        self.alignment: Literal["corner", "center"] = alignment
        self.motion = motion
        self.needs = DataNeeds(cameras=True, history=history)

    def lifted(self, batch: Batch) -> Tensor:
        """Present map and earlier map [B, 2 · C, Y, X], in the present axes."""
        if batch.cameras is None:
            raise ValueError("BEVDet4D needs images, the batch was loaded without cameras")
        history = _history(batch)
        present = self._frame(batch.cameras)
        with torch.no_grad():
            past = self._frame(_in_its_own_axes(history))
            lidar_T_past = history.lidar_T_past[:, -1]
            moved = warp_bev(past, lidar_T_past, self.lift_splat.grid, anchor=self.alignment)
        return torch.cat([present, moved], dim=1)

    def _frame(self, cameras: Cameras) -> Tensor:
        mapped: Tensor = self.frame_stage(self.lift_splat(self.image_features(cameras), cameras))
        return mapped

    def targets(self, outputs: Outputs, batch: Batch) -> Targets:
        """Heat maps and box codes, with the motion between the two frames for a velocity."""
        gap = self._gap(batch)[:, None, None]
        return self.head.targets(_scaled_motion(batch.boxes, gap), batch.labels)

    def decode(self, outputs: Outputs, batch: Batch) -> list[Detections]:
        """Boxes of each sample, velocities in m/s."""
        found = super().decode(outputs, batch)
        return [
            replace(detections, boxes=_scaled_motion(detections.boxes, 1 / gap))
            for detections, gap in zip(found, self._gap(batch), strict=True)
        ]

    def _gap(self, batch: Batch) -> Tensor:
        """Seconds [B] by which a velocity is multiplied; 1 where there is no other frame.

        Upstream: a later frame, at the start of a scene, counts like an earlier one.
        """
        history = _history(batch)
        seconds = history.seconds[:, -1].abs()
        if self.motion == "velocity":
            return torch.ones_like(seconds)
        return torch.where(history.present[:, -1], seconds, 1.0)


def _history(batch: Batch) -> History:
    if batch.history is None:
        raise ValueError("BEVDet4D needs an earlier frame, the batch was loaded without history")
    return batch.history


def _in_its_own_axes(history: History) -> Cameras:
    """The cameras of the last frame of a history, leading to the LiDAR axes of that frame."""
    cameras = Cameras(**{name: value[:, -1] for name, value in vars(history.cameras).items()})
    past_T_lidar = torch.linalg.inv(history.lidar_T_past[:, -1].double())[:, None]
    return replace(cameras, lidar_T_cam=(past_T_lidar @ cameras.lidar_T_cam.double()).float())


def _scaled_motion(boxes: Boxes, factor: Tensor) -> Boxes:
    return Boxes.from_parts(boxes.centers, boxes.size, boxes.yaw, boxes.velocity * factor)


def build(config: BevDet4dConfig, classes: tuple[str, ...]) -> BevDet4d:
    """Unpack a configuration; see BEVDet's."""
    return BevDet4d(
        frame_stage=bev_stage(config.lift_channels, config.lift_channels, config.frame_blocks, 1),
        alignment=config.alignment,
        motion=config.motion,
        history=AdjacentFrames(nearest_s=config.nearest_s, farthest_s=config.farthest_s),
        **parts(config, classes, encoder_inputs=2 * config.lift_channels),
    )
