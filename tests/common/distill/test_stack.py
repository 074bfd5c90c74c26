"""Several methods as one."""

from types import SimpleNamespace

import pytest
import torch
from bevkd_common.distill.method import ParamGroup
from bevkd_common.distill.panels import MapPanel
from bevkd_common.distill.stack import Stack
from bevkd_common.errors import UserError
from bevkd_common.models.detector import Deferred, Losses, Term
from torch import nn


class Part(nn.Module):
    """A method that adds a number, overwrites the student's first weight, and counts calibration batches."""

    def __init__(self, value, tap, parts=()):
        super().__init__()
        self.value = value
        self.teacher_taps, self.student_taps = frozenset({tap}), frozenset({tap, "both"})
        self.student_parts = frozenset(parts)
        self.adapter = nn.Linear(1, 1)
        self.computed = 0
        self.batches = []

    def forward(self, teacher, student, targets, batch):
        def metrics():
            self.computed += 1
            return {"gap": torch.tensor(self.value)}

        return Losses({"term": Term(torch.tensor(self.value), 0.5)}, Deferred(metrics))

    def prepare(self, teacher, student, calibration):
        self.batches = list(calibration)
        student.order.append(self.value)

    def param_groups(self):
        return [ParamGroup(list(self.adapter.parameters()), lr_factor=self.value)]

    def explain(self, teacher, student, targets, batch):
        return [MapPanel("map", "A map.", torch.zeros(2, 2))]


@pytest.fixture
def stack():
    return Stack({"first": Part(2.0, "a", {"head"}), "second": Part(3.0, "b", {"neck"})})


def test_terms_and_metrics_bear_the_name_of_their_part(stack):
    output = stack(None, None, None, None)
    assert {name: (term.value.item(), term.weight) for name, term in output.terms.items()} == {
        "first/term": (2.0, 0.5),
        "second/term": (3.0, 0.5),
    }
    assert [part.computed for part in stack.parts.values()] == [0, 0]
    assert {name: value.item() for name, value in output.metrics.items()} == {"first/gap": 2.0, "second/gap": 3.0}
    assert [part.computed for part in stack.parts.values()] == [1, 1]


def test_parts_prepare_in_order_on_the_same_batches(stack):
    student = SimpleNamespace(order=[])
    stack.prepare(None, student, iter(["batch 0", "batch 1"]))
    assert student.order == [2.0, 3.0]
    assert [part.batches for part in stack.parts.values()] == [["batch 0", "batch 1"]] * 2


def test_taps_are_united_and_parameter_groups_joined(stack):
    assert stack.teacher_taps == {"a", "b"}
    assert stack.student_taps == {"a", "b", "both"}
    assert stack.student_parts == {"head", "neck"}
    groups = stack.param_groups()
    assert [group.lr_factor for group in groups] == [2.0, 3.0]
    grouped = {id(parameter) for group in groups for parameter in group.parameters}
    assert grouped == {id(parameter) for parameter in stack.parameters()}


def test_panels_bear_the_name_of_their_part(stack):
    assert [panel.title for panel in stack.explain(None, None, None, None)] == ["first: map", "second: map"]


@pytest.mark.parametrize(
    ("ours", "theirs", "part"),
    [("head", "head", "head"), ("head", "head.decoder", "head.decoder"), ("head.decoder", "head", "head.decoder")],
)
def test_a_part_of_the_student_is_prepared_by_one_method_only(ours, theirs, part):
    with pytest.raises(UserError) as caught:
        Stack({"first": Part(1.0, "a", {ours, "other"}), "second": Part(1.0, "a", {theirs})})
    assert str(caught.value) == (
        f"first and second both inherit or freeze the student's `{part}`: switch it off in one of them"
    )


def test_parts_with_names_that_only_begin_alike_do_not_conflict():
    stack = Stack({"first": Part(1.0, "a", {"head"}), "second": Part(1.0, "a", {"header"})})
    assert stack.student_parts == {"head", "header"}
