"""The student imitates the teacher's tokens near boxes, and its anchor logits."""

import torch
from bevkd_common.distill.method import ParamGroup
from bevkd_common.distill.panels import PointPanel
from bevkd_common.distill.taps import require_tap
from bevkd_common.errors import UserError
from bevkd_common.models.detector import Losses, Term
from bevkd_common.models.taps import AnchorMaps, Tokens
from torch import nn
from torch.nn import functional as F


class ToyMethod(nn.Module):
    teacher_taps = student_taps = frozenset({"pillars", "head"})
    student_parts = frozenset()

    def __init__(self, weights, teacher_channels, student_channels):
        super().__init__()
        self.weights = weights
        self.adapter = nn.Linear(student_channels, teacher_channels)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, teacher, student, targets, batch):
        imitated = near_boxes(teacher.tokens["pillars"], batch)
        error = (self.errors(teacher, student) * imitated).sum() / imitated.sum().clamp(min=1)
        wanted, logits = (outputs.head[0]["class_logits"].float() for outputs in (teacher, student))
        difference = F.binary_cross_entropy_with_logits(logits, wanted.sigmoid())
        terms = {"tokens": Term(error, self.weights[0]), "logits": Term(difference, self.weights[1])}
        return Losses(terms, {"error": error.detach(), "imitated": imitated.float().mean()})

    def errors(self, teacher, student):
        """Mean smooth-L1 distance [T] of the tokens, in mean features of the teacher."""
        wanted, features = teacher.tokens["pillars"].features, self.adapter(student.tokens["pillars"].features)
        return F.smooth_l1_loss(features / self.scale, wanted / self.scale, reduction="none").mean(dim=1)

    @torch.no_grad()
    def prepare(self, teacher, student, calibration):
        outputs = teacher(next(iter(calibration)), self.teacher_taps)
        self.scale.copy_(outputs.tokens["pillars"].features.mean().clamp(min=1e-6))

    def param_groups(self):
        return [ParamGroup(list(self.adapter.parameters()), lr_factor=2.0)]

    def explain(self, teacher, student, targets, batch):
        tokens, first = teacher.tokens["pillars"], slice(teacher.tokens["pillars"].counts[0])
        caption = "Distance of the student's tokens from the teacher's; those that are imitated are large."
        sizes = 1.0 + 3.0 * near_boxes(tokens, batch)[first].cpu()
        values = self.errors(teacher, student)[first].cpu()
        return [PointPanel("tokens", caption, tokens.coordinates[first].cpu(), values, "metres", sizes)]


def near_boxes(tokens, batch):
    """Which tokens [T] are within a metre of the centre of a box of their sample."""
    sample = torch.arange(len(batch)).repeat_interleave(torch.tensor(tokens.counts)).to(batch.device)
    distance = (tokens.coordinates[:, None] - batch.boxes.centers[sample, :, :2]).norm(dim=-1)
    return ((distance < 1.0) & batch.valid[sample]).any(dim=1)


def build(config, teacher, student):
    tokens = [require_tap(taps, "pillars", Tokens, config.kind) for taps in (teacher, student)]
    heads = [require_tap(taps, "head", AnchorMaps, config.kind) for taps in (teacher, student)]
    if tokens[0].rows != tokens[1].rows or heads[0] != heads[1]:
        raise UserError(f"{config.kind}: {teacher.detector} and {student.detector} must share pillars and anchors")
    return ToyMethod((config.weight, config.logits_weight), tokens[0].channels, tokens[1].channels)
