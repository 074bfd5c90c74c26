import math

import pytest
import torch
from bevkd_common.geometry.boxes import Boxes, folded, points_in_boxes, points_in_boxes_bev
from bevkd_common.geometry.transforms import (
    inverse,
    reflection,
    rigid,
    rotation_z,
    scaling,
    transform_points,
    wrap_angle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=25, deadline=None)
FLOAT64 = torch.float64


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=FLOAT64)


def one_box(x=0.0, y=0.0, z=0.0, l=4.0, w=2.0, h=1.5, yaw_degrees=0.0, vx=0.0, vy=0.0) -> Boxes:  # noqa: E741
    return Boxes(vector(x, y, z, l, w, h, math.radians(yaw_degrees), vx, vy)[None])


def similarity(seed: int, random_rigid) -> torch.Tensor:
    """A rotation about z, an offset, a scale and, for half of the seeds each, a mirror in x and y."""
    matrix = random_rigid(seed, 0.0, 20.0) @ scaling(torch.tensor(0.5 + (seed % 7) / 4, dtype=FLOAT64))
    for axis, bit in (("x", 1), ("y", 2)):
        if seed & bit:
            matrix = matrix @ reflection(axis).double()
    return matrix


def test_columns():
    boxes = Boxes(torch.arange(18.0).reshape(2, 9))
    names = ["x", "y", "z", "l", "w", "h", "yaw", "vx", "vy"]
    assert [getattr(boxes, name)[1].item() for name in names] == [9, 10, 11, 12, 13, 14, 15, 16, 17]
    assert boxes.centers[0].tolist() == [0, 1, 2]
    assert boxes.size[0].tolist() == [3, 4, 5]
    assert boxes.velocity[0].tolist() == [7, 8]
    assert boxes.bev[0].tolist() == [0, 1, 3, 4, 6]


@pytest.mark.parametrize("shape", [(3, 7), (9,), (9, 3)], ids=str)
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[\.\.\., M, 9\]"):
        Boxes(torch.zeros(shape))


def test_length_empty_and_cat():
    assert len(Boxes.empty()) == 0
    assert Boxes.empty(dtype=FLOAT64, device="cpu").tensor.dtype == FLOAT64
    assert len(Boxes(torch.zeros(2, 5, 9))) == 5
    first, second = Boxes(torch.zeros(2, 9)), Boxes(torch.ones(3, 9))
    joined = Boxes.cat([first, second, Boxes.empty()])
    assert joined.x.tolist() == [0, 0, 1, 1, 1]
    assert Boxes.cat([Boxes(torch.zeros(4, 2, 9)), Boxes(torch.ones(4, 3, 9))]).tensor.shape == (4, 5, 9)


def test_from_parts_without_velocity_has_unknown_velocity():
    boxes = Boxes.from_parts(torch.ones(2, 3), torch.full((2, 3), 2.0), torch.full((2,), 3.0))
    assert boxes.tensor[:, :7].tolist() == [[1, 1, 1, 2, 2, 2, 3]] * 2
    assert boxes.velocity.isnan().all()
    assert boxes.velocity.shape == (2, 2)


def test_to_converts_and_returns_boxes():
    boxes = one_box().to(torch.float32)
    assert boxes.tensor.dtype == torch.float32
    assert boxes.to(device="cpu", dtype=FLOAT64).tensor.dtype == FLOAT64


def test_indexing_by_position_slice_mask_and_indices():
    boxes = Boxes(torch.arange(27.0).reshape(3, 9))
    assert boxes[1].tensor.shape == (1, 9)
    assert boxes[-1].x.tolist() == [18]
    assert boxes[1:].x.tolist() == [9, 18]
    assert boxes[torch.tensor([True, False, True])].x.tolist() == [0, 18]
    assert boxes[torch.tensor([2, 0, 0])].x.tolist() == [18, 0, 0]
    assert boxes[[2, 1]].x.tolist() == [18, 9]
    assert [box.x.item() for box in boxes] == [0, 9, 18]
    with pytest.raises(IndexError):
        boxes[3]
    with pytest.raises(ValueError, match="can be indexed"):
        Boxes(torch.zeros(2, 3, 9))[0]


def test_corners_by_hand():
    box = one_box(x=10, y=5, yaw_degrees=90)
    footprint = [[9, 7], [9, 3], [11, 3], [11, 7]]  # front left, rear left, rear right, front right
    torch.testing.assert_close(box.bev_corners()[0], torch.tensor(footprint, dtype=FLOAT64))
    expected = [[x, y, z] for z in (-0.75, 0.75) for x, y in footprint]
    torch.testing.assert_close(box.corners()[0], torch.tensor(expected, dtype=FLOAT64))
    raised = one_box(x=10, y=5, z=2, yaw_degrees=90)
    torch.testing.assert_close(raised.corners()[0, :, 2], vector(*[1.25] * 4, *[2.75] * 4))


def test_corners_of_a_box_at_thirty_degrees():
    # Front left corner: the centre, 2 m along (√3/2, 1/2) and 1 m along (-1/2, √3/2).
    corner = one_box(x=10, y=5, yaw_degrees=30).bev_corners()[0, 0]
    torch.testing.assert_close(corner, vector(10 + 3**0.5 - 0.5, 5 + 1 + 3**0.5 / 2))


def test_corners_of_batches(random_boxes):
    tensor = torch.stack([random_boxes(1, 4).tensor, random_boxes(2, 4).tensor])
    corners = Boxes(tensor).corners()
    assert corners.shape == (2, 4, 8, 3)
    assert torch.equal(corners[1], random_boxes(2, 4).corners())
    assert Boxes.empty().corners().shape == (0, 8, 3)


def assert_box(boxes: Boxes, *expected: float) -> None:
    """The single box, with yaw in degrees."""
    values = boxes.tensor[0].clone()
    values[6] = values[6].rad2deg()
    torch.testing.assert_close(values, vector(*expected))


def test_rotate_scale_and_flip_by_hand():
    box = one_box(x=10, y=5, z=-1, yaw_degrees=30, vx=1, vy=2)
    assert_box(box.rotate(math.pi / 2), -5, 10, -1, 4, 2, 1.5, 120, -2, 1)
    assert_box(box.flip("y"), 10, -5, -1, 4, 2, 1.5, -30, 1, -2)
    assert_box(box.flip("x"), -10, 5, -1, 4, 2, 1.5, 150, -1, 2)
    assert_box(box.scale(1.1), 11, 5.5, -1.1, 4.4, 2.2, 1.65, 30, 1.1, 2.2)
    assert_box(box.rotate(math.radians(160)).wrap_yaw(), *box.rotate(math.radians(160)).tensor[0, :6], -170,
               *box.rotate(math.radians(160)).tensor[0, 7:])  # fmt: skip


def test_translation_moves_centers_alone():
    moved = one_box(x=1, y=2, z=3, yaw_degrees=45, vx=4, vy=5).transform(
        rigid(torch.eye(3, dtype=FLOAT64), vector(10, 20, 30))
    )
    assert_box(moved, 11, 22, 33, 4, 2, 1.5, 45, 4, 5)


@PROPERTY
@given(seeds)
def test_the_corners_of_a_transformed_box_are_the_transformed_corners(random_boxes, random_rigid, seed):
    boxes, matrix = random_boxes(seed, 8), similarity(seed, random_rigid)
    expected = transform_points(matrix, boxes.corners())
    if seed & 1 != (seed & 2) >> 1:
        expected = expected[:, [3, 2, 1, 0, 7, 6, 5, 4]]  # a mirror exchanges left and right
    torch.testing.assert_close(boxes.transform(matrix).corners(), expected, atol=1e-10, rtol=0)


@PROPERTY
@given(seeds)
def test_a_box_that_moves_is_transformed_like_its_two_positions(random_boxes, random_rigid, seed):
    boxes, matrix = random_boxes(seed, 8), similarity(seed, random_rigid)
    later = boxes.centers + torch.nn.functional.pad(boxes.velocity, (0, 1))
    moved = transform_points(matrix, later) - transform_points(matrix, boxes.centers)
    torch.testing.assert_close(boxes.transform(matrix).velocity, moved[:, :2], atol=1e-10, rtol=0)


@PROPERTY
@given(seeds)
def test_transforms_undo_and_compose(random_boxes, random_rigid, seed):
    boxes = random_boxes(seed, 8)
    first, second = similarity(seed, random_rigid), similarity(seed + 5, random_rigid)
    back = boxes.transform(first).transform(inverse(first))
    torch.testing.assert_close(back.tensor, boxes.tensor, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        boxes.transform(first).transform(second).corners(), boxes.transform(second @ first).corners(),
        atol=1e-9, rtol=0,
    )  # fmt: skip


@PROPERTY
@given(seeds)
def test_yaw_and_sizes_come_out_in_range(random_boxes, random_rigid, seed):
    moved = random_boxes(seed, 8).transform(similarity(seed, random_rigid))
    assert (moved.yaw >= -math.pi).all()
    assert (moved.yaw < math.pi).all()
    assert (moved.size > 0).all()


def test_heading_backwards_is_minus_pi():
    assert one_box(yaw_degrees=0).flip("x").yaw.item() == -math.pi


def test_transform_of_batches(random_boxes, random_rigid):
    tensor = torch.stack([random_boxes(1, 4).tensor, random_boxes(2, 4).tensor])
    matrices = torch.stack([similarity(1, random_rigid), similarity(6, random_rigid)])
    moved = Boxes(tensor).transform(matrices)
    assert moved.tensor.shape == (2, 4, 9)
    for i in range(2):
        torch.testing.assert_close(moved.tensor[i], Boxes(tensor[i]).transform(matrices[i]).tensor)
    torch.testing.assert_close(Boxes(tensor).transform(matrices[0]).tensor[0], moved.tensor[0])
    assert len(Boxes.empty().transform(torch.eye(4))) == 0


def test_transform_keeps_the_dtype_and_gives_way_to_precise_matrices():
    boxes = one_box(yaw_degrees=30).to(torch.float32)
    assert boxes.transform(torch.eye(4, dtype=FLOAT64)).tensor.dtype == torch.float32
    assert boxes.rotate(0.1).scale(1.1).flip("x").tensor.dtype == torch.float32


def test_an_unknown_velocity_stays_unknown():
    unknown = Boxes.from_parts(torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1))
    moved = unknown.rotate(0.3).flip("y").scale(1.1)
    assert moved.velocity.isnan().all()
    assert not moved.tensor[:, :7].isnan().any()


def test_a_small_tilt_moves_centers_exactly_and_keeps_sizes():
    pitch = math.radians(2)
    rotation = torch.tensor(
        [[math.cos(pitch), 0, math.sin(pitch)], [0, 1, 0], [-math.sin(pitch), 0, math.cos(pitch)]], dtype=FLOAT64
    )
    box = one_box(x=10, y=5, yaw_degrees=45, vx=1, vy=1)
    moved = box.transform(rigid(rotation, torch.zeros(3, dtype=FLOAT64)))
    torch.testing.assert_close(moved.centers, box.centers @ rotation.T)
    torch.testing.assert_close(moved.size, box.size)
    # Seen from above the heading (1, 1) becomes (cos 2°, 1).
    torch.testing.assert_close(moved.yaw, torch.atan2(vector(1), vector(math.cos(pitch))))
    torch.testing.assert_close(moved.velocity, vector(math.cos(pitch), 1)[None])


def rotation_x(degrees: float) -> torch.Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=FLOAT64)
    return rigid(rotation, torch.zeros(3, dtype=FLOAT64))


@pytest.mark.parametrize(
    "matrix",
    [
        torch.diag(vector(1, 2, 1, 1)),
        torch.diag(vector(2, 2, 1, 1)),
        torch.diag(vector(1, 1, 1.001, 1)),
        torch.diag(vector(1, 1, -1, 1)),
        torch.tensor([[1, 0.01, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=FLOAT64),
        torch.full((4, 4), math.nan, dtype=FLOAT64),
        rotation_x(90),
        rotation_x(61),
    ],
    ids=["wide", "flat", "tall", "upside-down", "sheared", "nan", "on its side", "steep"],
)
def test_what_is_not_a_similarity_about_z_is_refused(matrix):
    with pytest.raises(ValueError, match="something else"):
        one_box().transform(matrix)


def test_slopes_and_rounding_are_accepted():
    assert len(one_box().transform(rotation_x(59))) == 1
    assert len(one_box().transform(torch.diag(vector(100, 100, 100.02, 1)))) == 1


def test_wrap_yaw_changes_yaw_alone(random_boxes):
    boxes = random_boxes(3, 4)
    turned = Boxes.from_parts(boxes.centers, boxes.size, boxes.yaw + 4 * math.pi, boxes.velocity).wrap_yaw()
    torch.testing.assert_close(turned.tensor, boxes.tensor)
    torch.testing.assert_close(wrap_angle(vector(7.0)), one_box(yaw_degrees=math.degrees(7.0)).wrap_yaw().yaw)


def test_points_in_a_footprint_by_hand():
    box = one_box(x=10, y=5, yaw_degrees=90)  # 9..11 in x, 3..7 in y
    points = vector(10, 5, 10.9, 6.9, 9.1, 3.1, 11.1, 5, 8.9, 5, 10, 7.1, 10, 2.9, 12, 5).reshape(-1, 2)
    assert points_in_boxes_bev(points, box).tolist() == [[True, True, True, False, False, False, False, False]]


def test_points_in_a_turned_footprint():
    # Half of the size is 2 m along and 1 m across; a box at -30 degrees would hold the mirrored points.
    box = one_box(yaw_degrees=30)
    along, left = vector(3**0.5 / 2, 0.5), vector(-0.5, 3**0.5 / 2)
    points = torch.stack([1.9 * along, 0.9 * left, 1.9 * along - 0.9 * left, 1.9 * left, 2.1 * along])
    assert points_in_boxes_bev(points, box).tolist() == [[True, True, True, False, False]]
    assert points_in_boxes_bev(points * vector(1, -1), box).tolist() == [[False, True, False, True, False]]


@pytest.mark.parametrize("border", [(2.0, 0.0), (-2.0, 0.0), (0.0, 1.0), (0.0, -1.0), (2.0, 1.0)], ids=str)
def test_the_border_is_outside_if_strict(border):
    box, points = one_box(), vector(*border)[None]
    assert points_in_boxes_bev(points, box).tolist() == [[False]]
    assert points_in_boxes_bev(points, box, strict=False).tolist() == [[True]]


def test_points_in_boxes_looks_at_the_height():
    box = one_box(z=2.0)  # 1.25..2.75 in z
    points = vector(0, 0, 2, 0, 0, 2.7, 0, 0, 1.3, 0, 0, 2.8, 0, 0, 1.2, 3, 0, 2, 0, 3, 2).reshape(-1, 3)
    assert points_in_boxes(points, box).tolist() == [[True, True, True, False, False, False, False]]
    on_top, at_bottom = vector(0, 0, 2.75)[None], vector(0, 0, 1.25)[None]
    for point in (on_top, at_bottom):
        assert points_in_boxes(point, box).tolist() == [[False]]
        assert points_in_boxes(point, box, strict=False).tolist() == [[True]]
    corner = box.corners()[0]
    assert not points_in_boxes(corner, box).any()
    assert points_in_boxes(corner, box, strict=False).all()


@PROPERTY
@given(seeds)
def test_points_drawn_inside_a_box_are_in_it_and_drawn_outside_are_not(random_boxes, seed):
    boxes = random_boxes(seed, 5)
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(5, 20, 3, dtype=FLOAT64, generator=generator) * 2 - 1
    axis = torch.randint(0, 3, (5, 20, 1), generator=generator)
    outside = unit.scatter(-1, axis, 1.01 * unit.gather(-1, axis).sign())
    for fraction, expected in ((unit * 0.999, True), (outside, False)):
        local = fraction * boxes.size[:, None] / 2
        points = transform_points(rigid(rotation_z(boxes.yaw), boxes.centers), local)
        inside = points_in_boxes(points.reshape(-1, 3), boxes).reshape(5, 5, 20)
        assert inside.shape == (5, 5, 20)
        assert (inside[range(5), range(5)] == expected).all()
        batched = points_in_boxes(points, Boxes(boxes.tensor[:, None]))
        assert torch.equal(batched[:, 0], inside[range(5), range(5)])


def test_no_boxes_or_no_points():
    assert points_in_boxes(torch.zeros(7, 3), Boxes.empty()).shape == (0, 7)
    assert points_in_boxes_bev(torch.zeros(0, 2), Boxes(torch.zeros(3, 9))).shape == (3, 0)


def test_boxes_whose_front_is_like_their_rear_are_folded():
    yaws = torch.tensor([0.0, 1.5, 2.0, -2.0, 3.0, 2.0])
    boxes = Boxes.from_parts(torch.zeros(6, 3), torch.ones(6, 3), yaws, torch.ones(6, 2))
    turned = folded(boxes, torch.tensor([True] * 5 + [False]))
    expected = [0.0, 1.5, 2.0 - math.pi, math.pi - 2.0, 3.0 - math.pi, 2.0]
    assert turned.yaw.tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(turned.velocity, boxes.velocity)
    assert torch.equal(turned.size, boxes.size)
