"""Parts of a student that start as the teacher's, or stay frozen."""

import pytest
import torch
from bevkd_common.distill.inherit import copy_part, freeze_part, part_of
from bevkd_common.errors import UserError
from torch import nn


class Parted(nn.Module):
    def __init__(self, seed: int, width: int = 3):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.queries = nn.Parameter(torch.randn(4, width))
        self.rest = nn.Linear(2, 2)

    @property
    def parts(self):
        return {"head": self.head, "queries": self.queries}


def changed(before, after):
    return {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("name", "copied"),
    [("head", {"head.0.weight", "head.0.bias", "head.1.running_mean"}), ("queries", {"queries"})],
)
def test_a_part_is_copied_with_its_buffers_and_nothing_else(name, copied):
    teacher, student = Parted(0), Parted(1)
    teacher.head[1].running_mean.fill_(0.7)
    before, taught = ({key: value.clone() for key, value in m.state_dict().items()} for m in (student, teacher))
    copy_part(teacher, student, name, "test", "stop")
    assert changed(before, student) == copied
    assert not changed(taught, teacher)
    assert all(torch.equal(student.state_dict()[key], taught[key]) for key in copied)
    with torch.no_grad():
        student.queries.add_(1)
    assert not changed(taught, teacher), "the student owns a copy"
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "queries",
            r"part `queries` of Parted does not fit Parted: .* \(4, 3\) and \(4, 5\) \(1 in all\); s",
        ),
        ("head", r"first head.0.bias: \(3,\) and \(5,\) \(6 in all\); stop"),
        ("decoder", r"^test: Parted has no part `decoder`, its parts are head, queries; stop$"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_copied(name, message):
    teacher, student = Parted(0), Parted(1, width=5)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(UserError, match=message):
        copy_part(teacher, student, name, "test", "stop")
    assert not changed(before, student)


def test_tensors_that_only_one_side_has_are_named():
    teacher, student = Parted(0), Parted(1)
    student.head.append(nn.Linear(3, 1))
    with pytest.raises(UserError, match=r"first head.2.bias: missing and \(1,\) \(2 in all\)"):
        copy_part(teacher, student, "head", "test", "stop")


@pytest.mark.parametrize("name", ["head", "queries"])
def test_a_frozen_part_has_no_gradients(name):
    student = Parted(0)
    freeze_part(student, name, "test", "stop")
    frozen = {key for key, value in student.named_parameters() if not value.requires_grad}
    assert frozen == {key for key, _ in student.named_parameters() if key.startswith(name)}
    assert frozen
    assert part_of(student, name, "test", "stop") is student.parts[name]
