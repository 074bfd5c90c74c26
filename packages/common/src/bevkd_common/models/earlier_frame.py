"""An earlier frame beside the present one in a lifting camera detector: BEVDet4D's and Megvii's."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from bevkd_common.data.needs import AdjacentFrames, KeyframeQueue
from bevkd_common.data.samples import Batch, Cameras, History
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.taps import Meaning
from bevkd_common.ops.bev_warp import warp_bev


class Lift(Protocol):
    """What lifts a frame."""

    def __call__(self, cameras: Cameras, known: Cameras | None = None) -> Tensor:
        """A map [B, C, Y, X] in the LiDAR axes to which the cameras lead.

        Args:
            cameras: Of the frame.
            known: The cameras whose parameters the depth net reads, if they are others.
        """
        ...


class Earlier(Protocol):
    """An `nn.Module` that puts the map of an earlier frame beside the present one."""

    @property
    def history(self) -> AdjacentFrames | KeyframeQueue:
        """Which frame it is."""
        ...

    @property
    def motion(self) -> Meaning:
        """What the head predicts in place of a velocity: `VELOCITY` or `DISPLACEMENT`."""
        ...

    def __call__(self, lifted: Tensor, batch: Batch, lift: Lift) -> Tensor:
        """Present map and earlier map side by side, in the present axes; the earlier one has no gradient.

        Args:
            lifted: The present frame as it was lifted, [B, C, Y, X].
            batch: With history.
            lift: Lifts the other frame.

        Raises:
            ValueError: If the batch has no history.
        """
        ...

    def learned(self, boxes: Boxes, batch: Batch) -> Boxes:
        """Return the boxes [B, M] that the head is trained on."""
        ...

    def told(self, boxes: Boxes, batch: Batch, sample: int) -> Boxes:
        """Return the boxes [M] decoded from one sample, with velocities in m/s."""
        ...


class EarlierKeyFrame(nn.Module):
    """Puts the map of the key frame before beside the present one; nothing is warped.

    The earlier images are lifted into the present axes, each with its own pose, by a depth net that reads the
    parameters of the present cameras. At the start of a scene the present frame is used twice. Batch norm runs on
    both frames.

    Source: BEVDepth (arXiv 2206.10092), numerics of its released two-frame detectors.
    """

    history = KeyframeQueue(frames=2, spare=0)
    motion = Meaning.VELOCITY

    def forward(self, lifted: Tensor, batch: Batch, lift: Lift) -> Tensor:
        """See `Earlier`: [B, 2 · C, Y, X]."""
        with torch.no_grad():
            past = lift(_last_cameras(_history(batch)), batch.cameras)
        return torch.cat([lifted, past], dim=1)

    def learned(self, boxes: Boxes, batch: Batch) -> Boxes:
        """The boxes as they are."""
        return boxes

    def told(self, boxes: Boxes, batch: Batch, sample: int) -> Boxes:
        """The boxes as they are."""
        return boxes


class EarlierFrame(nn.Module):
    """Puts the map of an earlier frame, moved with the ego, beside the present one.

    Each frame is lifted in its own LiDAR axes. The earlier one gets no gradient; batch norm runs on it.

    Upstream: the earlier images are lifted with the matrices of the present ones, here each image has its own.

    Args:
        stage: What the map of each frame passes.
        grid: Of the maps.
        alignment: The point of a cell that moves, see `warp_bev`.
        motion: What the head predicts in place of a velocity: `DISPLACEMENT` between the frames, or `VELOCITY`.
        history: Which frame it is.

    Source: BEVDet4D (arXiv 2203.17054), numerics of its released R50 detector.
    """

    def __init__(
        self,
        *,
        stage: nn.Module,
        grid: Grid,
        alignment: Literal["corner", "center"],
        motion: Meaning,
        history: AdjacentFrames,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.grid = grid
        self.alignment: Literal["corner", "center"] = alignment
        self.motion = motion
        self.history = history

    def forward(self, lifted: Tensor, batch: Batch, lift: Lift) -> Tensor:
        """See `Earlier`: [B, 2 · C, Y, X]."""
        history = _history(batch)
        present = self.stage(lifted)
        with torch.no_grad():
            past = self.stage(lift(history.frame(-1)))
            moved = warp_bev(past, history.lidar_T_past[:, -1], self.grid, anchor=self.alignment)
        return torch.cat([present, moved], dim=1)

    def learned(self, boxes: Boxes, batch: Batch) -> Boxes:
        """Return the boxes [B, M] that the head is trained on, with the motion between the frames as velocity."""
        return _with_motion(boxes, self._gap(batch)[:, None, None])

    def told(self, boxes: Boxes, batch: Batch, sample: int) -> Boxes:
        """Return the boxes [M] decoded from one sample, with velocities in m/s."""
        return _with_motion(boxes, 1 / self._gap(batch)[sample])

    def _gap(self, batch: Batch) -> Tensor:
        """Seconds [B] by which a velocity is multiplied; 1 where there is no other frame.

        Upstream: a later frame, at the start of a scene, counts like an earlier one.
        """
        history = _history(batch)
        seconds = history.seconds[:, -1].abs()
        if self.motion is Meaning.VELOCITY:
            return torch.ones_like(seconds)
        return torch.where(history.present[:, -1], seconds, 1.0)


def _history(batch: Batch) -> History:
    if batch.history is None:
        raise ValueError("an earlier frame is needed, the batch was loaded without history")
    return batch.history


def _last_cameras(history: History) -> Cameras:
    """The cameras of the last frame of a history, leading to the present axes."""
    return Cameras(**{name: value[:, -1] for name, value in vars(history.cameras).items()})


def _with_motion(boxes: Boxes, factor: Tensor) -> Boxes:
    return Boxes.from_parts(boxes.centers, boxes.size, boxes.yaw, boxes.velocity * factor)
