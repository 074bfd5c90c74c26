import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.iou import bev_iou
from bevkd_common.ops.nms import circle_overlaps, keep_best, rotated_overlaps, suppress
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)


def centers(*rows: tuple[float, float]) -> Boxes:
    return Boxes(torch.tensor([[x, y, 0, 4, 2, 1.5, 0, 0, 0] for x, y in rows]))


def circles(boxes: Boxes, squared_distance: float, block: int = 1024) -> torch.Tensor:
    valid = torch.ones(boxes.tensor.shape[:-1], dtype=torch.bool)
    return suppress(boxes, valid, lambda i, j, _: circle_overlaps(i, j, squared_distance), block)


def greedy(overlaps: torch.Tensor) -> list[bool]:
    keep: list[bool] = []
    for j in range(len(overlaps)):
        keep.append(not any(keep[i] and bool(overlaps[i, j]) for i in range(j)))
    return keep


def test_circle_thresholds_are_squared_distances():
    # Squared distances: AB 9, AC 3.69, BC 3.69; a threshold of 4 metres would leave A alone.
    boxes = centers((0, 0), (3, 0), (1.5, 1.2))
    overlaps = circle_overlaps(boxes, boxes, 4.0)
    assert overlaps.int().tolist() == [[1, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert keep_best(overlaps).tolist() == [True, True, False]


def test_a_distance_equal_to_the_threshold_suppresses():
    assert circles(centers((0, 0), (2, 0)), 4.0).tolist() == [True, False]


def test_circles_ignore_the_height():
    boxes = Boxes(torch.tensor([[0.0, 0, 0, 4, 2, 1, 0, 0, 0], [0, 0, 9, 4, 2, 1, 0, 0, 0]]))
    assert circles(boxes, 1.0).tolist() == [True, False]


def test_a_suppressed_box_suppresses_nothing():
    chain = torch.zeros(5, 5, dtype=torch.bool)
    for i in range(4):
        chain[i, i + 1] = True
    assert keep_best(chain).tolist() == [True, False, True, False, True]


def test_worse_boxes_never_suppress_better_ones():
    assert keep_best(torch.ones(3, 3, dtype=torch.bool).tril(-1)).tolist() == [True, True, True]


def test_no_boxes():
    assert keep_best(torch.zeros(2, 0, 0, dtype=torch.bool)).shape == (2, 0)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, size=st.integers(1, 40), density=st.floats(0.01, 0.5))
def test_equals_the_greedy_loop(seed, size, density):
    generator = torch.Generator().manual_seed(seed)
    overlaps = torch.rand(2, size, size, generator=generator) < density
    assert keep_best(overlaps).tolist() == [greedy(matrix) for matrix in overlaps]


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_rotated_overlaps_are_the_pairs_above_the_threshold(seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.rand(2, 30, 9, generator=generator, dtype=torch.float64)
    tensor = tensor * torch.tensor([8.0, 8, 2, 5, 3, 2, 6, 1, 1]) + torch.tensor([0, 0, 0, 0.5, 0.5, 0.5, 0, 0, 0])
    valid = torch.rand(2, 30, generator=generator) < 0.8
    both = valid[:, :, None] & valid[:, None, :]
    overlaps = rotated_overlaps(Boxes(tensor), Boxes(tensor), both.triu(1), 0.2)
    expected = torch.stack([bev_iou(Boxes(boxes), Boxes(boxes)) > 0.2 for boxes in tensor]) & both
    assert torch.equal(overlaps, expected.triu(1))
    assert expected.triu(1).any()


def test_an_overlap_equal_to_the_threshold_does_not_suppress():
    # Two 4 x 2 boxes, 2 m apart along their length: 4 m² of 12 m².
    boxes = Boxes(centers((0, 0), (2, 0)).tensor.double()[None])
    wanted = torch.ones(1, 2, 2, dtype=torch.bool).triu(1)
    iou = float(bev_iou(Boxes(boxes.tensor[0]), Boxes(boxes.tensor[0]))[0, 1])
    assert abs(iou - 1 / 3) < 1e-12
    assert not rotated_overlaps(boxes, boxes, wanted, iou).any()
    assert rotated_overlaps(boxes, boxes, wanted, iou - 1e-9).int().tolist() == [[[0, 1], [0, 0]]]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, block=st.integers(1, 40), rotated=st.booleans())
def test_the_size_of_a_block_does_not_matter(seed, block, rotated):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.rand(2, 30, 9, generator=generator, dtype=torch.float64)
    tensor = tensor * torch.tensor([12.0, 12, 2, 5, 3, 2, 6, 1, 1]) + torch.tensor(
        [0, 0, 0, 0.5, 0.5, 0.5, 0, 0, 0]
    )
    boxes, valid = Boxes(tensor), torch.rand(2, 30, generator=generator) < 0.8
    full = torch.stack([bev_iou(Boxes(one), Boxes(one)) > 0.1 for one in tensor])
    pairs = full if rotated else circle_overlaps(boxes, boxes, 4.0)

    def rule(first, second, wanted):
        return rotated_overlaps(first, second, wanted, 0.1) if rotated else circle_overlaps(first, second, 4.0)

    found = suppress(boxes, valid, rule, block)
    expected = [greedy(matrix & used[:, None]) for matrix, used in zip(pairs, valid, strict=True)]
    assert torch.equal(found, torch.tensor(expected) & valid)


def test_no_more_than_a_block_of_pairs_is_compared_at_once():
    sizes = set()

    def rule(first, second, wanted):
        sizes.add((len(first), len(second)))
        return torch.ones_like(wanted)

    assert suppress(centers(*[(0, 0)] * 10), torch.ones(10, dtype=torch.bool), rule, 4).tolist() == [
        True,
        *[False] * 9,
    ]
    assert sizes == {(4, 4), (4, 2), (2, 2)}
