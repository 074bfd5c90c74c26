import pytest
import torch
from bevkd_common.engine.evaluate import usable
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Detections


def detections(*changes):
    """One sound box, and a copy with each change (column, value)."""
    rows = torch.tensor([[1.0, 2.0, 0.5, 4.0, 2.0, 1.5, 0.3, 1.0, 0.0]]).repeat(1 + len(changes), 1)
    for row, (column, value) in enumerate(changes, start=1):
        rows[row, column] = value
    return Detections(Boxes(rows), torch.linspace(0.9, 0.1, len(rows)), torch.arange(len(rows)))


@pytest.mark.parametrize(
    "change",
    [(0, torch.nan), (2, torch.inf), (3, 0.0), (4, -1.0), (5, torch.inf), (6, torch.nan), (7, torch.inf)],
)
def test_a_box_that_cannot_be_scored_is_dropped_with_its_score_and_label(change):
    kept = usable(detections((0, 3.0), change, (1, 4.0)))
    assert kept.labels.tolist() == [0, 1, 3]
    assert kept.boxes.tensor[:, :2].tolist() == [[1.0, 2.0], [3.0, 2.0], [1.0, 4.0]]
    assert kept.scores.tolist() == pytest.approx([0.9, 0.9 - 0.8 / 3, 0.1])


def test_sound_boxes_and_unknown_velocities_stay():
    found = detections((7, torch.nan), (3, 1e-6))
    assert usable(found) is found
    assert len(usable(Detections(Boxes(torch.zeros(0, 9)), torch.zeros(0), torch.zeros(0))).scores) == 0
