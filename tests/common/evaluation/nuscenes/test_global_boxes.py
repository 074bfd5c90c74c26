"""Columns of boxes."""

import numpy as np
import pytest
from bevkd_common.errors import UserError
from bevkd_common.evaluation.nuscenes.global_boxes import CLASSES, Cuboids, DetectionArrays

BOX = {
    "translation": np.zeros((1, 3)),
    "length": [4.0],
    "width": [2.0],
    "height": [1.5],
    "rotation": [[1, 0, 0, 0]],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("translation", np.zeros((1, 2))),
        ("translation", np.zeros(3)),
        ("length", np.ones(2)),
        ("width", np.ones((1, 1))),
        ("rotation", np.ones((1, 3))),
    ],
)
def test_shapes_must_agree(name, value) -> None:
    with pytest.raises(ValueError, match=f"Cuboids.{name} has shape"):
        Cuboids(**{**BOX, name: value})


def test_whole_columns_must_be_whole_numbers() -> None:
    with pytest.raises(TypeError, match="same_kind"):
        DetectionArrays(Cuboids(**BOX), np.array([0.5]), np.zeros((1, 2)), np.array([-1]), np.ones(1))


def test_columns_become_double_precision() -> None:
    cuboids = Cuboids(**{**BOX, "translation": np.full((1, 3), 1 / 3, np.float32)})
    assert cuboids.translation.dtype == np.float64
    assert cuboids.translation[0, 0] == np.float32(1 / 3)


@pytest.mark.parametrize("yaw", [0.0, 0.4, 2.0, -1.0, -3.0])
@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_yaw_of_a_turn_about_z(yaw: float, scale: float) -> None:
    rotation = scale * np.array([[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]])
    assert Cuboids(**{**BOX, "rotation": rotation}).yaw() == pytest.approx([yaw])


@pytest.mark.parametrize(
    ("rotation", "yaw"),
    [
        ([0.0, 1.0, 0.0, 0.0], 0.0),  # half a turn about x leaves x
        ([0.0, 0.0, 1.0, 0.0], np.pi),  # about y it turns x round
        ([1.0, 1.0, 1.0, 1.0], np.pi / 2),  # x to y to z to x
        ([2.0, 0.0, 1.0, 0.0], 0.0),  # nose down
        ([0.0, 1.0, 1.0, 0.0], np.pi / 2),  # half a turn about the diagonal swaps x and y
        ([1.0, 1.0, 0.0, 1.0], np.arctan2(2.0, 1.0)),
    ],
)
def test_yaw_of_other_turns(rotation: list[float], yaw: float) -> None:
    assert np.abs(Cuboids(**{**BOX, "rotation": [rotation]}).yaw()) == pytest.approx([yaw])


def test_contains_its_faces_and_nothing_beyond() -> None:
    cuboids = Cuboids(**{**BOX, "translation": [[10.0, 0.0, 1.0]]})
    inside = [(12, 0, 1), (8, 0, 1), (10, 1, 1), (10, -1, 1), (10, 0, 1.75), (10, 0, 0.25), (12, -1, 0.25)]
    outside = [(12.01, 0, 1), (7.99, 0, 1), (10, 1.01, 1), (10, -1.01, 1), (10, 0, 1.76), (10, 0, 0.24), (0, 0, 0)]
    assert cuboids.contain(np.array(inside, float)).all()
    assert not cuboids.contain(np.array(outside, float)).any()


def test_contains_turns_with_the_cuboid() -> None:
    # A third of a turn about the diagonal: x to y to z to x, so the length points along y and the width along z.
    turned = Cuboids(**{**BOX, "rotation": [[3.0, 3.0, 3.0, 3.0]]})
    assert turned.contain(np.array([[0.7, 1.9, 0.9], [0.8, 0, 0], [0, 2.1, 0], [0, 0, 1.1]])).tolist() == [
        True,
        False,
        False,
        False,
    ]
    yaw = np.pi / 6
    turned = Cuboids(**{**BOX, "rotation": [[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]]})
    tip = 1.9 * np.array([np.cos(yaw), np.sin(yaw), 0.0])
    assert turned.contain(np.stack([tip, tip * (1, -1, 1)])).tolist() == [True, False]


def test_any_of_several_cuboids_will_do() -> None:
    two = Cuboids(np.array([[0.0, 0, 0], [9, 0, 0]]), np.ones(2), np.ones(2), np.ones(2), np.eye(4)[[0, 0]])
    assert two.contain(np.array([[0.1, 0, 0], [9.1, 0, 0], [5, 0, 0]])).tolist() == [True, True, False]
    assert Cuboids.empty().contain(np.zeros((2, 3))).tolist() == [False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [-1]}, "^x: label of prediction 0 must be one of 0 to 9"),
        ({"labels": [len(CLASSES)]}, "^x: label of prediction 0"),
        ({"attributes": [-2]}, "^x: attribute of prediction 0 must be one of -1"),
        ({"attributes": [8]}, "^x: attribute of prediction 0 must be one of -1 .none. to 7"),
    ],
)
def test_codes_are_checked(change, message) -> None:
    columns = {"labels": [9], "velocity": np.full((1, 2), np.nan), "attributes": [7], "scores": [0.0]}
    DetectionArrays(Cuboids(**BOX), **columns).check("x")
    with pytest.raises(UserError, match=message):
        DetectionArrays(Cuboids(**BOX), **(columns | change)).check("x")
