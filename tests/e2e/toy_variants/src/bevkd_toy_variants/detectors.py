"""A pretraining of the toy detector's reader, and a detector that comes with its weights."""

from bevkd_common.models.detector import Losses, Term
from bevkd_toy.detector import ToyDetector
from safetensors.torch import load_file
from torch import nn


class ToyPretraining(nn.Module):
    needs = ToyDetector.needs
    summary = "the number of points of each pillar"

    def __init__(self, channels):
        super().__init__()
        self.count = nn.Linear(channels, 1)

    def trained(self, detector):
        return [detector.reader]

    def forward(self, detector, batch):
        pillars = detector(batch, frozenset({"pillars"})).tokens["pillars"]
        error = self.count(pillars.features)[:, 0] - pillars.points.log()
        return Losses({"count": Term(error.square().mean())})


def build_pretraining(config, classes):
    return ToyPretraining(config.channels)


def build_finished(config, classes):
    detector = ToyDetector(config.channels, classes)
    detector.load_state_dict(load_file(config.weights))
    return detector
