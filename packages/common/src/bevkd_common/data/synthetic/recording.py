"""Recordings: one scene as the sensors of one rig see it, independent of any on-disk format."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bevkd_common.config.datasets.world import WorldConfig

from .cameras import Image, render
from .lidar import Sweep, sweep
from .rig import Camera, Rig
from .scene import LEAD, Scene, Stream
from .solids import Solids, build_solids


@dataclass(frozen=True)
class Frame:
    """One frame of one sensor.

    Attributes:
        sensor: Name of the sensor.
        microseconds: Time of the frame, from the time 0 of the scene.
        seconds: The same time in seconds.
        sample: Index of the key frame that this frame is, or of the next key frame. The first key frame of a scene
            is preceded by other frames.
        is_key_frame: Whether this is a key frame.
    """

    sensor: str
    microseconds: int
    seconds: float
    sample: int
    is_key_frame: bool


@dataclass(frozen=True, eq=False)
class Recording:
    """A scene recorded by a rig.

    Sweeps and images are computed when they are iterated over, so that only one of them is in memory at a time.
    They are the same in every iteration.

    Attributes:
        scene: The scene.
        rig: The rig.
        frames: Frames of each sensor in order of time. The LiDAR is the first sensor.
        solids: Boxes of the objects of the scene.
    """

    scene: Scene
    rig: Rig
    frames: dict[str, list[Frame]]
    solids: Solids

    @property
    def key_frames(self) -> list[Frame]:
        """Key frames of the LiDAR."""
        return [frame for frame in self.frames[self.rig.lidar.name] if frame.is_key_frame]

    def sweeps(self) -> Iterator[tuple[Frame, Sweep]]:
        """Yields all LiDAR sweeps in order of time."""
        for number, frame in enumerate(self.frames[self.rig.lidar.name]):
            rng = self.scene.random(Stream.SWEEP, number)
            yield frame, sweep(self.scene, self.solids, frame.seconds, self.rig, rng)

    def images(self) -> Iterator[tuple[Camera, Frame, Image]]:
        """Yields all images, camera by camera, in order of time."""
        for key, camera in enumerate(self.rig.cameras):
            for number, frame in enumerate(self.frames[camera.name]):
                rng = self.scene.random(Stream.IMAGE, key, number)
                yield camera, frame, render(self.scene, self.solids, frame.seconds, camera, rng)


def record(config: WorldConfig, scene: Scene, rig: Rig) -> Recording:
    """Records a scene with a rig.

    Raises:
        ValueError: If the rates or delays of the rig do not fit the key frames of the world.
    """
    frames = schedule(rig, config.keyframes_per_scene, config.keyframe_rate, scene.random(Stream.SCHEDULE))
    return Recording(scene, rig, frames, build_solids(scene))


def schedule(rig: Rig, keyframes: int, keyframe_rate: float, rng: np.random.Generator) -> dict[str, list[Frame]]:
    """Returns all frames of a scene by sensor, in order of time.

    Frames begin one key-frame interval before the first key frame. Their times are jittered by at most three
    standard deviations.

    Raises:
        ValueError: If the rates or delays of the rig do not fit the key frames.
    """
    frames: dict[str, list[Frame]] = {}
    for sensor in rig.sensors:
        name, rate = sensor.name, sensor.rate
        delay = sensor.delay if isinstance(sensor, Camera) else 0.0
        ratio = round(rate / keyframe_rate)
        if ratio < 1 or abs(rate / keyframe_rate - ratio) > 1e-9:
            raise ValueError(f"the rate of {name}, {rate} Hz, is no whole multiple of {keyframe_rate} Hz")
        if delay < 0 or delay + 3 * rig.time_jitter > LEAD:
            raise ValueError(
                f"the delay of {name}, {delay} s, must be from 0 to {LEAD} s less three times the jitter"
            )
        ticks = np.arange(1 - ratio, (keyframes - 1) * ratio + 1)
        jitter = np.clip(rng.normal(0, rig.time_jitter, len(ticks)), -3 * rig.time_jitter, 3 * rig.time_jitter)
        micros = np.round((ticks / rate - delay + jitter) * 1e6).astype(np.int64)
        frames[name] = [
            Frame(name, int(micro), int(micro) * 1e-6, -(-int(tick) // ratio), int(tick) % ratio == 0)
            for tick, micro in zip(ticks, micros, strict=True)
        ]
    return frames
