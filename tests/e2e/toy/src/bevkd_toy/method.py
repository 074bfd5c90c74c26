"""Imitates the features."""

from bevkd_common.distill.method import ParamGroup
from bevkd_common.distill.panels import MapPanel
from bevkd_common.models.detector import Losses, Term
from torch import nn


class ToyMethod(nn.Module):
    teacher_taps = frozenset({"features"})
    student_taps = frozenset({"features"})
    student_parts = frozenset()

    def __init__(self, weight, teacher_channels, student_channels):
        super().__init__()
        self.weight = weight
        self.adapter = nn.Conv2d(student_channels, teacher_channels, 1)

    def forward(self, teacher, student, targets, batch):
        error = (self.adapter(student.taps["features"]) - teacher.taps["features"]).square().mean()
        return Losses({"features": Term(error, self.weight)}, {"error": error.detach()})

    def prepare(self, teacher, student, calibration):
        next(iter(calibration))

    def param_groups(self):
        return [ParamGroup(list(self.parameters()))]

    def explain(self, teacher, student, targets, batch):
        magnitude = teacher.taps["features"][0].abs().mean(dim=0)
        return [
            MapPanel("features", "Mean magnitude of the teacher's features.", magnitude, (-4.0, 4.0, -4.0, 4.0))
        ]


def build(config, teacher, student):
    return ToyMethod(config.weight, teacher.specs["features"].channels, student.specs["features"].channels)
