"""A world with another rig and another format than nuScenes: 16 beams, one camera, other mounts, other files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from bevkd_common.config.datasets.world import WorldConfig
from bevkd_common.data import synthetic
from bevkd_common.data.synthetic import content_hash, ensure_world
from bevkd_common.data.synthetic.recording import Recording, record, schedule
from bevkd_common.data.synthetic.rig import BODY_R_CAMERA, BodyPart, Camera, Lidar, Rig
from bevkd_common.data.synthetic.rigid import inverse, rigid, rotation_from_euler, transform
from bevkd_common.data.synthetic.scene import draw_scene
from bevkd_common.data.synthetic.solids import annotation_boxes
from bevkd_common.data.synthetic.writer import Folder
from PIL import Image

CONFIG = WorldConfig(seed=21, train_scenes=2, val_scenes=1, keyframes_per_scene=3)
SCENES, KEYFRAMES = 3, 3
# The steps differ: 1 degree above, 3 degrees below.
ELEVATIONS = np.radians([*range(-29, -5, 3), *range(-4, 4)])
RIG = Rig(
    vehicle="toy",
    lidar=Lidar(
        name="lidar",
        ego_T_sensor=rigid(rotation_from_euler(0.5, 0.04, -0.03), np.array([0.9, 0.1, 1.73])),
        elevations=ELEVATIONS,
        azimuths=400,
        rate=4.0,
        range=45.0,
        dropout=0.1,
        noise=0.01,
    ),
    cameras=(
        Camera(
            name="camera",
            ego_T_sensor=rigid(rotation_from_euler(0.02) @ BODY_R_CAMERA, np.array([1.2, -0.1, 1.65])),
            intrinsic=np.array([[150.0, 0, 103], [0, 150, 35], [0, 0, 1]]),
            image_size=(62, 207),
            rate=2.0,
            delay=0.0,
            noise=0.0,
        ),
    ),
)


@dataclass(frozen=True)
class ToyWriter:
    """Writes points and images without folders, the boxes of cars, and one list of frames for all scenes."""

    config: WorldConfig
    name: str = "toy-world"

    def rig(self, index: int) -> Rig:
        return RIG

    def write_scene(self, recording: Recording, folder: Folder) -> list[str]:
        index = recording.scene.index
        for frame, sweep in recording.sweeps():
            cloud = np.column_stack([sweep.points, sweep.reflectance.clip(0, 1)]).astype(np.float32)
            folder.write(f"{index}-{frame.microseconds}.bin", cloud.tobytes())
        for _, frame, image in recording.images():
            folder.write_image(f"{index}-{frame.sample}.png", image.colour)
        cars = [kind == "car" for kind in recording.scene.kinds]
        for frame in recording.key_frames:
            boxes = annotation_boxes(recording.scene, frame.seconds)[cars]
            folder.write_json(f"{index}-{frame.sample}.json", boxes.tolist())
        return [f"{index}-{frame.sample}" for frame in recording.key_frames]

    def write_shared(self, scenes: Sequence[list[str]], folder: Folder) -> None:
        folder.write("frames.txt", "\n".join(frame for scene in scenes for frame in scene).encode())


@pytest.fixture(scope="module")
def toy_world(tmp_path_factory) -> Path:
    return ensure_world(ToyWriter(CONFIG), tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def recording() -> Recording:
    return record(CONFIG, draw_scene(CONFIG, 0), RIG)


def test_a_world_has_the_files_of_its_writer(toy_world):
    assert toy_world.name == "toy-world"
    names = {path.name for path in toy_world.iterdir()}
    frames = [f"{scene}-{sample}" for scene in range(SCENES) for sample in range(KEYFRAMES)]
    assert (toy_world / "frames.txt").read_text().splitlines() == frames
    images = {f"{frame}.png" for frame in frames}
    # Two sweeps a key frame, the first of them a quarter of a second before the first key frame.
    sweeps = {f"{scene}-{250_000 * tick}.bin" for scene in range(SCENES) for tick in range(-1, 2 * KEYFRAMES - 1)}
    assert names == {"frames.txt", "world.json", *sweeps, *images, *(f"{frame}.json" for frame in frames)}
    with Image.open(toy_world / "0-0.png") as image:
        assert image.size == (207, 62)
    assert len(content_hash(toy_world)) == 64
    assert ensure_world(ToyWriter(CONFIG), toy_world.parent) == toy_world


def test_objects_do_not_depend_on_the_rig(toy_world):
    scene = draw_scene(CONFIG, 1)
    cars = annotation_boxes(scene, 0.5)[[kind == "car" for kind in scene.kinds]]
    assert json.loads((toy_world / "1-1.json").read_text()) == cars.tolist()
    assert len(cars) > 2


def test_sweeps_have_the_beams_and_the_mount_of_the_rig(recording):
    clean = replace(RIG, lidar=replace(RIG.lidar, noise=0.0, dropout=0.0))
    ((frame, sweep), *rest) = replace(recording, rig=clean).sweeps()
    assert len(rest) == 5
    x, y, z = sweep.points.T.astype(np.float64)
    assert len(ELEVATIONS) == 16
    assert set(sweep.beam) == set(range(16))
    np.testing.assert_allclose(np.arctan2(z, np.hypot(x, y)), ELEVATIONS[sweep.beam], atol=1e-6)
    assert np.sqrt(x**2 + y**2 + z**2).max() <= 45.001
    assert len(sweep.reflectance) == len(sweep.points)
    assert 0.02 < np.median(sweep.reflectance) < 0.5
    in_map = transform(recording.scene.map_T_ego(frame.seconds) @ RIG.lidar.ego_T_sensor, sweep.points)
    # The ground is flat, and a good part of the points is on it.
    assert in_map[:, 2].min() > -1e-4
    assert (in_map[:, 2] < 1e-4).mean() > 0.3


def test_images_agree_with_sweeps(recording):
    sweeps = {frame.sample: (frame, sweep) for frame, sweep in recording.sweeps() if frame.is_key_frame}
    agree = total = 0
    for camera, frame, image in recording.images():
        lidar_frame, sweep = sweeps[frame.sample]
        assert lidar_frame.microseconds == frame.microseconds
        map_T_ego = recording.scene.map_T_ego(frame.seconds)
        in_map = transform(map_T_ego @ RIG.lidar.ego_T_sensor, sweep.points)
        in_camera = transform(inverse(map_T_ego @ camera.ego_T_sensor), in_map)
        u, v, depth = (in_camera @ camera.intrinsic.T).T
        column, row = np.rint(u / depth).astype(int), np.rint(v / depth).astype(int)
        seen = (depth > 1) & (column >= 0) & (column < 207) & (row >= 0) & (row < 62) & (in_map[:, 2] > 0.1)
        for index, box in enumerate(annotation_boxes(recording.scene, frame.seconds)):
            offset = in_map[seen] - box[:3]
            along = np.cos(box[6]) * offset[:, 0] + np.sin(box[6]) * offset[:, 1]
            across = np.cos(box[6]) * offset[:, 1] - np.sin(box[6]) * offset[:, 0]
            inside = (np.abs(np.stack([along, across, offset[:, 2]], axis=-1)) < box[3:6] / 2).all(axis=1)
            agree += (image.owner[row[seen][inside], column[seen][inside]] == index).sum()
            total += inside.sum()
    assert total > 300
    # The sensors are 0.4 m apart, so some points are hidden from the camera.
    assert agree / total > 0.85


def test_the_vehicle_body_is_in_view_of_the_lidar(recording):
    def points_near(rig):
        _, sweep = next(replace(recording, rig=rig).sweeps())
        in_ego = transform(rig.lidar.ego_T_sensor, sweep.points)
        return int((np.abs(in_ego[:, :2] - [2.0, 0.0]) < 0.5).all(axis=1).sum())

    parts = (BodyPart((2.0, 0.0, 1.4), (0.3, 0.3, 0.2)), BodyPart((-0.5, 0.0, 1.4), (0.1, 0.1, 0.1)))
    assert points_near(RIG) == 0
    assert points_near(replace(RIG, body=parts)) > 20


def test_iterations_of_a_recording_are_equal(recording):
    for (_, first), (_, second) in zip(recording.sweeps(), recording.sweeps(), strict=True):
        np.testing.assert_array_equal(first.points, second.points)
    for (*_, first), (*_, second) in zip(recording.images(), recording.images(), strict=True):
        np.testing.assert_array_equal(first.colour, second.colour)


@pytest.mark.parametrize(
    ("lidar", "camera", "message"),
    [
        ({"rate": 3.0}, {}, "the rate of lidar, 3.0 Hz, is no whole multiple of 2.0 Hz"),
        ({}, {"rate": 1.0}, "the rate of camera, 1.0 Hz"),
        ({}, {"delay": 0.06}, "the delay of camera, 0.06 s, must be from 0 to 0.05 s"),
        ({}, {"delay": -0.01}, "the delay of camera"),
    ],
)
def test_rates_and_delays_fit_the_key_frames(lidar, camera, message):
    rig = replace(RIG, lidar=replace(RIG.lidar, **lidar), cameras=(replace(RIG.cameras[0], **camera),))
    with pytest.raises(ValueError, match=message):
        schedule(rig, KEYFRAMES, 2.0, np.random.default_rng(0))


def test_beam_elevations_ascend():
    with pytest.raises(ValueError, match="the beam elevations of lidar must ascend"):
        replace(RIG.lidar, elevations=ELEVATIONS[::-1])


def test_only_the_command_and_the_data_set_import_a_format():
    sources = sorted(Path(synthetic.__file__).parent.glob("*.py"))
    assert len(sources) >= 18
    importing = {path.name for path in sources if "nuscenes import" in path.read_text(encoding="utf-8")}
    assert importing == {"__main__.py", "dataset.py"}
