"""A seeded procedural world: scenes, sensor rigs, and writers of on-disk formats.

    scene.py, placement.py, motion.py, street.py, kinds.py, shapes.py    what a scene consists of
    rig.py                                                               cameras and LiDAR of a vehicle
    lidar.py, cameras.py, raycast.py, solids.py, paint.py, patterns.py   simulation of the sensors
    recording.py                                                         a scene recorded by a rig
    writer.py, generate.py                                               the interface of formats; generation
    nuscenes/                                                            rig and writer of nuScenes v1.0

Nothing here imports torch, so that worker processes start fast.
"""

from .generate import content_hash, ensure_world

__all__ = ["content_hash", "ensure_world"]
