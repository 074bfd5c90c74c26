"""Mask R-CNN as a source of masks, with made-up answers and with random weights."""

import numpy as np
import pytest
import torch
from bevkd_common.config.datasets.nuscenes_names import CLASSES
from bevkd_common.errors import UserError
from bevkd_common.models import mask_rcnn
from bevkd_common.models.mask_rcnn import CLASS_OF_COCO, MaskRcnn, load_mask_rcnn
from PIL import Image
from torch import nn

CPU = torch.device("cpu")


class Answers(nn.Module):
    """Finds a car, a dog, a bus that is hardly one, and a person."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, images):
        self.seen += images
        masks = torch.zeros(4, 1, 6, 8)
        masks[0, 0, 1:3, 2:5] = 0.9
        masks[1] = masks[2] = 1.0
        masks[3, 0, 4, 4], masks[3, 0, 4, 5] = 0.5, 0.49
        return [
            {"labels": torch.tensor([3, 18, 6, 1]), "scores": torch.tensor([0.8, 0.9, 0.2, 0.95]), "masks": masks}
        ]


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.full((6, 8, 3), (255, 0, 51), np.uint8)).save(tmp_path / "a.png")
    return "a.png"


def test_classes_of_coco_become_ours(tmp_path, image):
    answers = Answers()
    found = MaskRcnn(tmp_path, answers, "0" * 64).instances(image, "scene", (6, 8))
    assert [CLASSES[label] for label in found.labels] == ["pedestrian", "car"]
    np.testing.assert_allclose(found.scores, [0.95, 0.8], rtol=1e-6)
    assert found.pixels.tolist() == [4 * 8 + 4, *(row * 8 + column for row in (1, 2) for column in (2, 3, 4))]
    (seen,) = answers.seen
    assert seen.shape == (3, 6, 8)
    torch.testing.assert_close(seen[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert set(CLASS_OF_COCO.values()) < set(CLASSES)


def test_an_image_of_another_size_is_refused(tmp_path, image):
    with pytest.raises(UserError, match=r"a\.png has \(6, 8\) pixels"):
        MaskRcnn(tmp_path, Answers(), "0" * 64).instances(image, "scene", (8, 6))


def test_weights_of_torchvision_are_loaded_and_others_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_mask_rcnn(tmp_path, tmp_path / "none.pth", CPU)

    def small(weights, weights_backbone):
        assert weights is weights_backbone is None
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def other(weights, weights_backbone):
        return nn.Sequential(nn.Linear(3, 4))

    monkeypatch.setattr(mask_rcnn, "BUILDERS", ((other, 0.5), (small, 0.25)))
    state = small(None, None).state_dict()
    path = tmp_path / "weights.pth"
    # Norms that are frozen for good count no batches.
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, path)
    found = load_mask_rcnn(tmp_path, path, CPU)
    torch.testing.assert_close(found.model[0].weight, state["0.weight"])
    assert (found.model[1].eps, found.model.training) == (0.25, False)
    assert found.settings["weights_sha256"] == found.weights_hash
    torch.save({"0.weight": state["0.weight"]}, path)
    with pytest.raises(UserError, match=r"does not fit torchvision's Mask R-CNN; take(.|\n)*missing 0\.bias"):
        load_mask_rcnn(tmp_path, path, CPU)


def test_both_versions_of_torchvision_can_be_built():
    for build, _ in mask_rcnn.BUILDERS:
        with torch.device("meta"):
            model = build(weights=None, weights_backbone=None)
        assert len(model.state_dict()) > 300
    assert len(mask_rcnn.BUILDERS) == 2
