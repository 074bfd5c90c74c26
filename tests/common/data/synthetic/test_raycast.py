from dataclasses import replace

import numpy as np
import pytest
from bevkd_common.data.synthetic.cameras import camera_windows, pixel_rays
from bevkd_common.data.synthetic.lidar import lidar_windows, ray_directions
from bevkd_common.data.synthetic.raycast import Windows, cast
from bevkd_common.data.synthetic.rigid import rigid, rotation_from_euler
from bevkd_common.data.synthetic.solids import upright_boxes


def everything(boxes: int, rays: int):
    return np.repeat(np.arange(boxes), rays), np.tile(np.arange(rays), boxes)


@pytest.mark.parametrize(
    ("yaw", "face", "point"),
    [(0.0, 1, (-2, 0, 0)), (np.pi, 0, (2, 0, 0)), (np.pi / 2, 2, (0, 1, 0)), (-np.pi / 2, 3, (0, -1, 0))],
)
def test_a_ray_enters_by_the_face_that_looks_at_it(yaw, face, point):
    box = upright_boxes(np.array([[10.0, 0, 0]]), np.array([[2.0, 1, 1]]), np.array([yaw]))
    hits, _, _ = cast(np.zeros(3), np.array([[1.0, 1e-9, 1e-9]]), box, *everything(1, 1))
    assert hits.face.tolist() == [face]
    np.testing.assert_allclose(hits.point, [point], atol=1e-6)
    np.testing.assert_allclose(hits.distance, 10 - abs(np.array(point)).max())


def test_faces_above_and_below():
    box = upright_boxes(np.array([[0.0, 0, 0]]), np.array([[1.0, 1, 1]]), np.zeros(1))
    down, _, _ = cast(np.array([0, 0, 5.0]), np.array([[1e-9, 0, -1.0]]), box, *everything(1, 1))
    up, _, _ = cast(np.array([0, 0, -5.0]), np.array([[1e-9, 0, 1.0]]), box, *everything(1, 1))
    assert (down.face.tolist(), up.face.tolist()) == ([4], [5])


def test_the_nearest_box_wins_and_the_hidden_one_is_reported():
    boxes = upright_boxes(np.array([[10.0, 0, 0], [5, 0, 0], [-5, 0, 0]]), np.ones((3, 3)), np.zeros(3))
    hits, met_box, met_ray = cast(np.zeros(3), np.array([[1.0, 0, 0], [0, 1.0, 0]]), boxes, *everything(3, 2))
    assert hits.ray.tolist() == [0]
    assert hits.box.tolist() == [1]
    assert hits.distance.tolist() == [4.0]
    assert sorted(zip(met_box.tolist(), met_ray.tolist(), strict=True)) == [(0, 0), (1, 0)]
    none = hits[np.zeros(1, dtype=bool)]
    assert len(none.ray) == 0


def test_windows_list_their_pairs_around_the_seam():
    windows = Windows(np.array([1, 0]), np.array([2, 0]), np.array([3, 0]), np.array([2, 5]))
    box, ray = windows.pairs(4)
    # Rows 1 and 2, columns 3 and 0 of a grid four columns wide; the second box has no rows.
    assert box.tolist() == [0, 0, 0, 0]
    assert ray.tolist() == [7, 4, 11, 8]


def same_hits(origin, directions, boxes, windows, width):
    quick, _, _ = cast(origin, directions, boxes, *windows.pairs(width))
    slow, _, _ = cast(origin, directions, boxes, *everything(len(boxes.centre), len(directions)))
    assert len(slow.ray) > 200
    np.testing.assert_array_equal(quick.ray, slow.ray)
    np.testing.assert_array_equal(quick.box, slow.box)
    np.testing.assert_array_equal(quick.distance, slow.distance)


def test_camera_windows_lose_no_hit(scene, solids, cameras):
    boxes = solids.placed(scene.arcs.poses(0.0))
    for channel in ("CAM_FRONT", "CAM_BACK", "CAM_FRONT_LEFT"):
        camera = cameras[channel]
        map_T_camera = scene.map_T_ego(0.0) @ camera.ego_T_sensor
        directions = pixel_rays(camera) @ map_T_camera[:3, :3].T
        windows = camera_windows(boxes, map_T_camera, camera)
        same_hits(map_T_camera[:3, 3], directions, boxes, windows, 176)
        assert (windows.rows * windows.columns).sum() < 0.1 * len(solids) * 64 * 176


# A narrow upper block over a wide lower one, as in the HDL-64E.
UNEVEN = np.radians([*np.linspace(-24.3, -8.8, 16), *np.linspace(-8.3, 2.0, 32)])


@pytest.mark.parametrize("tilt_degrees", [None, 0.0, 4.0, 12.0])
@pytest.mark.parametrize("elevations", [None, UNEVEN])
def test_lidar_windows_lose_no_hit(tilt_degrees, elevations, scene, solids, rig):
    lidar = replace(rig.lidar, azimuths=180)
    if elevations is not None:
        lidar = replace(lidar, elevations=elevations)
    if tilt_degrees is not None:
        tilt = np.radians(tilt_degrees)
        lidar = replace(lidar, ego_T_sensor=rigid(rotation_from_euler(0.3, tilt, -tilt), np.array([0.5, 0.2, 1.7])))
    boxes = solids.placed(scene.arcs.poses(0.5))
    map_T_lidar = scene.map_T_ego(0.5) @ lidar.ego_T_sensor
    directions = ray_directions(lidar, 0.01) @ map_T_lidar[:3, :3].T
    windows = lidar_windows(boxes, map_T_lidar, lidar, 0.01)
    same_hits(map_T_lidar[:3, 3], directions, boxes, windows, 180)
    if not tilt_degrees:
        assert (windows.rows * windows.columns).sum() < 0.1 * len(solids) * lidar.beams * 180
