"""Makers of virtual points: from instance masks, and from files of the released generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.data.frames import CameraFrame
from bevkd_common.data.nuscenes.frames import own_frame
from bevkd_common.data.nuscenes.index import NuScenesIndex
from bevkd_common.data.sensor_files import SensorFiles
from bevkd_common.data.virtual_points.files import SweepJob
from bevkd_common.data.virtual_points.instances import MaskSource, named_rng
from bevkd_common.data.virtual_points.lifting import View, VirtualPoints, lift
from bevkd_common.data.virtual_points.numpy_pickle import read_numpy_dictionary
from bevkd_common.errors import UserError
from bevkd_common.files import inside
from bevkd_common.geometry.transforms import inverse_rigid

OFFICIAL_CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
"""The order in which the 2D detector of the released generator counts. Source: the nuImages converter."""


@dataclass(frozen=True)
class FromMasks:
    """Lifts points from the images nearest in time to a sweep.

    A key frame has its own six images. Another sweep has those of the moment of `CameraMoments` that is nearest.

    Upstream: the image nearest to the sweep is looked for camera by camera there.
    """

    index: NuScenesIndex
    masks: MaskSource

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Maker`."""
        return self.masks.settings

    @property
    def sentence(self) -> str:
        """See `Maker`."""
        return self.masks.sentence

    def make(self, job: SweepJob) -> VirtualPoints:
        """See `Maker`."""
        sweep = SensorFiles(self.index.root, cache=False).sweep(job.sweep)
        scene = self.index.key_frames.scene[job.row].decode()
        frame = sweep_frame(self.index, job)
        views = [
            View(self.masks.instances(image, scene, (int(height), int(width))), intrinsics, lidar_T_cam)
            for image, (height, width), intrinsics, lidar_T_cam in zip(
                frame.paths, frame.sizes, frame.intrinsics, frame.lidar_T_cam, strict=True
            )
        ]
        return lift(sweep, views, named_rng("virtual points", job.sweep))


def sweep_frame(index: NuScenesIndex, job: SweepJob) -> CameraFrame:
    """The images for a sweep; matrices lead to the axes of the sweep at its own time."""
    if job.column == 0:
        return own_frame(index, job.row)
    sweeps, moments = index.sweeps, index.moments
    time = int(sweeps.timestamp[job.row, job.column])
    begin, end = int(moments.begin[job.row]), int(moments.end[job.row])
    moment = begin + int(np.abs(moments.timestamp[begin:end] - time).argmin())
    global_T_sweep = index.key_frames.global_T_lidar[job.row] @ sweeps.lidar_T_sweep[job.row, job.column]
    sweep_T_global = inverse_rigid(torch.tensor(global_T_sweep)).numpy()
    return CameraFrame(
        paths=[name.decode() for name in moments.path[moment].tolist()],
        sizes=moments.size[moment],
        intrinsics=moments.intrinsics[moment],
        lidar_T_cam=sweep_T_global @ moments.global_T_cam[moment],
        lidar_T_past=sweep_T_global @ moments.global_T_lidar[moment],
        seconds=(time - int(moments.timestamp[moment])) * 1e-6,
        row=None,
    )


@dataclass(frozen=True)
class FromOfficialFiles:
    """Takes over what the released generator of MVP wrote.

    Its files lie under `folder` as `samples/LIDAR_TOP_VIRTUAL/<file of the sweep>.pkl.npy`, and as `sweeps/...`;
    they are pickles, read without running what they may say. The archive that can be downloaded lacks some.
    """

    folder: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Maker`."""
        return {"masks": "official", "folder": str(self.folder.resolve())}

    @property
    def sentence(self) -> str:
        """See `Maker`."""
        return f"files of the released generator in {self.folder}"

    def make(self, job: SweepJob) -> VirtualPoints | None:
        """See `Maker`."""
        sweep = PurePosixPath(job.sweep)
        folder = sweep.parent.with_name(f"{sweep.parent.name}_VIRTUAL")
        path = inside(self.folder, str(folder / f"{sweep.name}.pkl.npy"))
        if not path.is_file():
            return None
        arrays = read_numpy_dictionary(path)
        virtual = _table(path, arrays, "virtual_points", 3)
        painted = _table(path, arrays, "real_points", 4)
        return VirtualPoints(virtual[:, :3], *_classes(virtual, 3), painted[:, :4], *_classes(painted, 4))


def _table(path: Path, arrays: Mapping[str, npt.NDArray[Any]], name: str, place: int) -> npt.NDArray[np.float32]:
    """[N, place + 11] numbers: those of a point, one column a class, score."""
    columns = place + len(OFFICIAL_CLASSES) + 1
    table = arrays.get(name, np.zeros(0))
    if table.ndim != 2 or table.shape[1] != columns or table.dtype.kind != "f" or not np.isfinite(table).all():
        raise UserError(
            f"{path} holds `{name}` {table.dtype} {table.shape}, not finite numbers [N, {columns}]; "
            "was it made by another generator?"
        )
    if len(table) and not np.isin(table[:, place:-1].sum(axis=1), 1.0).all():
        raise UserError(f"{path} holds points of `{name}` that are not of exactly one class; generate it again")
    return table.astype(np.float32)


def _classes(table: npt.NDArray[np.float32], place: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    ours = np.array([CLASSES.index(name) for name in OFFICIAL_CLASSES], dtype=np.uint8)
    return ours[table[:, place:-1].argmax(axis=1)], table[:, -1]
