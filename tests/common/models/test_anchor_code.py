import torch
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.heads.anchor_code import ANCHOR_CODE, anchors_on, by_anchor, decode, encode

GRID = Grid(0.0, 10.0, 2.0, nx=3, ny=2)
SHAPES = ((0.5, 4.0, 3.0, 2.0, 0.0), (1.0, 1.0, 1.0, 1.0, 1.5))


def test_anchors_are_cell_by_cell_and_maps_are_read_in_that_order():
    anchors = anchors_on(GRID, SHAPES)
    assert len(anchors) == 12
    assert anchors.tensor[2 * (1 * 3 + 2) + 1].tolist() == [5.0, 13.0, 1.0, 1.0, 1.0, 1.0, 1.5, 0.0, 0.0]
    maps = torch.arange(2 * 6 * 2 * 3).view(2, 6, 2, 3)  # three channels for each of two anchors
    rows = by_anchor(maps, anchors=2)
    assert rows.shape == (2, 12, 3)
    assert rows[1, 2 * (1 * 3 + 2) + 1].tolist() == maps[1, 3:, 1, 2].tolist()


def test_a_code_is_in_diagonals_heights_and_logs_of_the_anchor():
    anchor = Boxes(torch.tensor([[1.0, 2.0, 0.5, 4.0, 3.0, 2.0, 0.1, 0.0, 0.0]]))
    box = Boxes(torch.tensor([[6.0, 2.5, 1.5, 8.0, 3.0, 1.0, 0.4, 0.0, 0.0]]))
    code = encode(box, anchor)
    expected = torch.tensor([[1.0, 0.1, 0.5, 2.0, 1.0, 0.5, 0.3]])
    expected[:, 3:6].log_()
    torch.testing.assert_close(code, expected)
    decoded = decode(code, anchor)
    torch.testing.assert_close(decoded.tensor[:, :7], box.tensor[:, :7])
    assert decoded.velocity.isnan().all()
    assert sum(part.channels for part in ANCHOR_CODE) == code.shape[-1]
