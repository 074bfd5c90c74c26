from dataclasses import replace

import numpy as np
import pytest
from bevkd_common.data.synthetic.cameras import render
from bevkd_common.data.synthetic.kinds import KINDS, Motion
from bevkd_common.data.synthetic.motion import concatenate, single
from bevkd_common.data.synthetic.rigid import inverse, transform
from bevkd_common.data.synthetic.scene import Scene
from bevkd_common.data.synthetic.solids import annotation_boxes, build_solids, upright_boxes


@pytest.fixture
def shoot(cameras, rng):
    def shoot(scene: Scene, channel="CAM_FRONT", seconds=0.0, noise=0.0):
        return render(scene, build_solids(scene), seconds, replace(cameras[channel], noise=noise), rng)

    return shoot


@pytest.fixture
def stage(scene):
    """The scene's street and light with nothing on it but the given (kind, x ahead, y left, yaw)."""

    def stage(*things: tuple[str, float, float, float]) -> Scene:
        x0, y0, heading = scene.ego.poses(0.0)[0]
        cos, sin = np.cos(heading), np.sin(heading)
        arcs = [
            single(x0 + cos * x - sin * y, y0 + sin * x + cos * y, heading + yaw, 0.0, 0.0, 0.0, 0.0)
            for _, x, y, yaw in things
        ]
        return replace(
            scene,
            kinds=tuple(kind for kind, *_ in things),
            motions=(Motion.PARKED,) * len(things),
            sizes=np.array([KINDS[kind].size for kind, *_ in things]),
            arcs=concatenate(arcs),
        )

    return stage


def test_masks_lie_inside_the_projected_boxes(scene, shoot, cameras):
    checked = 0
    for channel, camera in cameras.items():
        image = shoot(scene, channel)
        assert image.colour.shape == (64, 176, 3)
        boxes = annotation_boxes(scene, 0.0)
        corners = upright_boxes(boxes[:, :3], boxes[:, 3:6] / 2, boxes[:, 6]).corners()
        local = transform(inverse(scene.map_T_ego(0.0) @ camera.ego_T_sensor), corners)
        for index in np.unique(image.owner[image.owner >= 0]):
            if local[index, :, 2].min() < 0.5:
                continue
            pixels = local[index] @ camera.intrinsic.T
            u, v = (pixels[:, :2] / pixels[:, 2:]).T
            rows, columns = np.nonzero(image.owner == index)
            assert u.min() <= columns.min()
            assert columns.max() <= u.max()
            assert v.min() <= rows.min()
            assert rows.max() <= v.max()
            checked += 1
    assert checked > 40


def test_a_mask_fills_its_box(stage, shoot, cameras):
    bus = stage(("rigid_bus", 16.0, 0.0, 0.0))
    rows, columns = np.nonzero(shoot(bus).owner == 0)
    # Its rear is 2.82 m wide without the margin, some 9 m before the camera.
    distance = 16.0 - KINDS["rigid_bus"].size[0] / 2 + 0.05 - cameras["CAM_FRONT"].ego_T_sensor[0, 3]
    expected = cameras["CAM_FRONT"].intrinsic[0, 0] * (KINDS["rigid_bus"].size[1] - 0.1) / distance
    assert columns.max() - columns.min() + 1 == pytest.approx(expected, abs=2)
    assert rows.min() == 0


def test_what_stands_behind_is_covered(stage, shoot):
    alone = shoot(stage(("car", 20.0, 0.0, 0.0)))
    assert alone.visible.tolist() == alone.covered.tolist()
    behind = shoot(stage(("car", 20.0, 0.0, 0.0), ("truck", 12.0, 0.0, 0.0)))
    assert behind.covered[0] == alone.covered[0] > 50
    assert behind.visible[0] == 0
    half = shoot(stage(("car", 20.0, 0.0, 0.0), ("truck", 11.0, 1.25, 0.0)))
    assert 0.15 < half.visible[0] / half.covered[0] < 0.85
    assert (half.owner == 0).sum() == half.visible[0]
    assert half.covered[1] == half.visible[1]


@pytest.mark.parametrize("kind", ["car", "loader", "adult", "trailer"])
def test_front_is_brighter_than_rear(kind, stage, shoot):
    def brightness(yaw):
        image = shoot(stage((kind, 9.0, 0.0, yaw)))
        return image.colour[image.owner == 0].astype(float).mean()

    # Seen from the ego a thing that looks back at it shows its front; the light is the same from any side.
    assert brightness(np.pi) > 1.15 * brightness(0.0)


def test_a_cone_is_orange_and_a_car_has_red_lamps_behind(stage, shoot):
    cone = shoot(stage(("traffic_cone", 6.0, 0.0, 0.0)))
    red, green, blue = cone.colour[cone.owner == 0].astype(float).T
    orange = (red > 1.6 * green) & (red > 3 * blue)
    assert orange.mean() > 0.25
    rear, front = (shoot(stage(("car", 9.0, 0.0, yaw))).colour.astype(float) for yaw in (0.0, np.pi))
    lamps = [((image[..., 0] > 90) & (image[..., 0] > 4 * image[..., 1])).sum() for image in (rear, front)]
    assert lamps[0] >= 10
    assert lamps[1] == 0


def test_sky_above_and_road_below(stage, shoot, cameras):
    image = shoot(stage(("pole", -30.0, 5.0, 0.0)))
    horizon = cameras["CAM_FRONT"].intrinsic[1, 2]
    sky = image.colour[: int(horizon) - 3].astype(float)
    road = image.colour[int(horizon) + 12 :].astype(float)
    assert (image.owner == -1).all()
    assert sky.mean() > 1.4 * road.mean()
    # Texture: neighbouring pixels of the road differ.
    assert np.abs(np.diff(road, axis=1)).mean() > 0.5


def test_noise_and_resolution_are_as_asked(stage, shoot):
    scene = stage(("pole", -30.0, 5.0, 0.0))
    noisy = shoot(scene, noise=0.05)
    quiet = shoot(scene, noise=0.0)
    difference = noisy.colour[:10].astype(float) - quiet.colour[:10].astype(float)
    assert np.std(difference) == pytest.approx(0.05 * 255, rel=0.25)
