import pytest
import torch
from accelerate import Accelerator
from bevkd_common.data.samples import collate
from bevkd_common.engine.tasks import DistillationTask
from bevkd_common.engine.teacher import FrozenTeacher
from bevkd_common.models.detector import Losses, Term
from torch import nn


class Imitation(nn.Module):
    teacher_taps = frozenset({"hidden"})
    student_taps = frozenset({"hidden"})

    def __init__(self):
        super().__init__()
        self.adapter = nn.Linear(1, 1)

    def forward(self, teacher, student, targets, batch):
        error = (self.adapter(student.taps["hidden"]) - teacher.taps["hidden"]).square().mean()
        return Losses({"hidden": Term(error, 2.0)}, {"error": error.detach()})

    def param_groups(self):
        return []


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone, for the distributed wrapper."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("wrap", ["plain", "accelerate", "ddp", "sequential"])
def test_nothing_of_the_teacher_moves_in_fifty_steps(make_detector, clouds, wrap, precision, one_process):
    teacher = make_detector(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = DistillationTask(make_detector(), FrozenTeacher(teacher), Imitation()).train()
    wrapped = {
        "plain": lambda: task,
        "accelerate": lambda: Accelerator(cpu=True).prepare(task),
        "ddp": lambda: nn.parallel.DistributedDataParallel(task),
        "sequential": lambda: nn.Sequential(task),
    }[wrap]()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    source = clouds()
    student = {name: value.clone() for name, value in task.detector.state_dict().items()}
    for step in range(50):
        wrapped.train()
        batch = collate([source.load(index, seed=step) for index in range(4)])
        with torch.autocast("cpu", precision, enabled=precision is not None):
            terms, metrics = wrapped(batch)
        assert set(terms) == {"detection/square", "distillation/hidden"}
        assert set(metrics) == {"detection/error", "distillation/error"}
        optimizer.zero_grad()
        sum(term.value * term.weight for term in terms.values()).backward()
        optimizer.step()
    assert teacher.calls == 50
    assert not teacher.training
    assert len(before) == 7
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    # The student does move, its batch norm included.
    assert not any(torch.equal(task.detector.state_dict()[name], value) for name, value in student.items())


@pytest.mark.parametrize(
    ("precision", "around", "seen"),
    [
        (None, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
    ],
)
def test_the_teacher_has_a_precision_of_its_own(make_detector, clouds, precision, around, seen):
    frozen = FrozenTeacher(make_detector(1), precision)
    batch = collate([clouds().load(index, seed=0) for index in range(4)])
    with torch.autocast("cpu", around, enabled=around is not None):
        outputs = frozen(batch, frozenset({"hidden"}))
    assert outputs.head[0]["value"].dtype == seen


def test_the_task_neither_trains_nor_saves_the_teacher(make_detector):
    teacher = make_detector(1)
    task = DistillationTask(make_detector(), FrozenTeacher(teacher), Imitation())
    ids = {id(parameter) for parameter in task.parameters()}
    assert not ids & {id(parameter) for parameter in teacher.parameters()}
    assert len(task.state_dict()) == len(make_detector().state_dict()) + 2


def test_a_teacher_put_in_training_mode_is_put_back(make_detector, clouds):
    frozen = FrozenTeacher(make_detector(1))
    frozen.detector.train()
    mean = frozen.detector.norm.running_mean.clone()
    batch = collate([clouds().load(index, seed=0) for index in range(4)])
    outputs = frozen(batch, frozenset({"hidden"}))
    assert not outputs.taps["hidden"].requires_grad
    assert torch.equal(frozen.detector.norm.running_mean, mean)
