"""Counts points per cell and convolves."""

import torch
from bevkd_common.data.needs import DataNeeds
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.geometry.grid import Grid
from bevkd_common.models.detector import Detections, Losses, Outputs, Term
from bevkd_common.models.taps import BevMap, HeadMaps
from safetensors.torch import load_file
from torch import nn

GRID = Grid(-4.0, -4.0, 1.0, 8, 8)


class ToyTargets:
    """Heat maps are all that a method may ask of them."""

    def __init__(self, heatmaps):
        self.heatmaps = heatmaps


class ToyDetector(nn.Module):
    needs = DataNeeds(clouds=frozenset({"lidar"}))

    def __init__(self, channels):
        super().__init__()
        self.features = nn.Conv2d(1, channels, 3, padding=1)
        self.heatmap = nn.Conv2d(channels, 1, 1)
        self.parts = {"features": self.features}
        self.taps = {
            "features": BevMap(channels, GRID),
            "head": HeadMaps(GRID, (("thing",),), ()),
        }

    def forward(self, batch, want, state=None):
        maps = []
        for cloud in batch.cloud("lidar").split():
            cell = ((cloud[:, :2] + 4.0).floor().long()).clamp(0, 7)
            maps.append(
                torch.zeros(64).index_add(0, cell[:, 1] * 8 + cell[:, 0], torch.ones(len(cloud))).view(1, 8, 8)
            )
        features = self.features(torch.stack(maps))
        return Outputs({"features": features}, [{"heatmap": self.heatmap(features.relu())}])

    def targets(self, outputs, batch):
        heatmap = torch.zeros(len(batch), 1, 8, 8)
        for row in range(len(batch)):
            for x, y in batch.boxes.tensor[row, batch.valid[row], :2].tolist():
                heatmap[row, 0, int(y + 4), int(x + 4)] = 1.0
        return ToyTargets([heatmap])

    def losses(self, outputs, targets, batch):
        logits = outputs.head[0]["heatmap"].float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets.heatmaps[0])
        return Losses({"heatmap": Term(loss)}, {"highest": logits.detach().sigmoid().max()})

    def decode(self, outputs, batch):
        found = []
        for heatmap in outputs.head[0]["heatmap"].float().sigmoid():
            scores, cells = heatmap.flatten().topk(3)
            tensor = torch.zeros(3, 9)
            tensor[:, 0] = cells % 8 - 3.5
            tensor[:, 1] = cells // 8 - 3.5
            tensor[:, 3:6] = 1.0
            found.append(Detections(Boxes(tensor), scores, torch.zeros(3, dtype=torch.int64)))
        return found


class ToyPretraining(nn.Module):
    needs = DataNeeds(clouds=frozenset({"lidar"}))
    summary = "whether the features tell how many points there are"

    def __init__(self, channels):
        super().__init__()
        self.count = nn.Linear(channels, 1)

    def trained(self, detector):
        return [detector.features]

    def forward(self, detector, batch):
        features = detector(batch, frozenset({"features"})).taps["features"]
        counted = self.count(features.mean(dim=(2, 3)))[:, 0]
        error = counted - torch.tensor(batch.cloud("lidar").counts) / 60
        return Losses({"count": Term(error.square().mean())})


def build(config, classes):
    return ToyDetector(config.channels)


def build_finished(config, classes):
    detector = ToyDetector(config.channels)
    detector.load_state_dict(load_file(config.weights))
    return detector


def build_pretraining(config, classes):
    return ToyPretraining(config.channels)
