"""A detector of two numbers, and samples to train it on."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from bevkd_common.config.training import CosineSchedule, OptimizerConfig, TrainingConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.data.samples import Cloud, Sample
from bevkd_common.engine.checkpoint import latest, load_file, newest_sound
from bevkd_common.engine.tasks import PretrainingTask, SupervisedTask
from bevkd_common.engine.train import train
from bevkd_common.geometry.boxes import Boxes
from bevkd_common.models.detector import Detections, Losses, Outputs, Term
from bevkd_common.progress import SilentReporter
from torch import nn


class PointMean(nn.Module):
    """Predicts the mean of the points' x, through a batch norm, so that buffers move."""

    needs = DataNeeds(clouds=frozenset({"lidar"}))

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.scale = nn.Linear(1, 1)
        self.taps = {}
        self.calls = 0

    def forward(self, batch, want, state=None):
        self.calls += 1
        means = torch.stack([cloud[:, :1].mean(dim=0) for cloud in batch.cloud("lidar").split()])
        hidden = self.norm(means)
        return Outputs({"hidden": hidden}, [{"value": self.scale(hidden)}])

    def targets(self, outputs, batch):
        return batch.boxes.tensor[:, :1, 0]

    def losses(self, outputs, targets, batch):
        error = outputs.head[0]["value"] - targets
        return Losses({"square": Term(error.square().mean(), 0.5)}, {"error": error.detach().abs().mean()})

    def decode(self, outputs, batch):
        return [
            Detections(Boxes(torch.zeros(1, 9)), value.sigmoid(), torch.zeros(1, dtype=torch.int64))
            for value in outputs.head[0]["value"]
        ]


@dataclass
class Clouds:
    """Random clouds around the value that is to be predicted."""

    samples: int = 10
    poison: int | None = None
    tokens: tuple[str, ...] = field(init=False)
    scenes: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        self.tokens = tuple(f"sample-{index}" for index in range(self.samples))
        self.scenes = tuple(f"scene-{index // 3}" for index in range(self.samples))

    def __len__(self):
        return self.samples

    def load(self, index, *, seed):
        rng = np.random.default_rng([index, 0 if seed is None else seed])
        value = np.sin(index)
        points = torch.from_numpy(rng.normal(value, 0.1, (4, 5)).astype(np.float32))
        if index == self.poison:
            points[0, 0] = torch.nan
        box = torch.zeros(1, 9)
        box[0, 0] = value
        return Sample(
            token=self.tokens[index],
            scene=self.scenes[index],
            timestamp=index,
            boxes=Boxes(box),
            labels=torch.zeros(1, dtype=torch.int64),
            cameras=None,
            clouds={"lidar": Cloud(points, (len(points),), tuple("xyzit"))},
            aug_T_lidar=torch.eye(4),
            global_T_lidar=torch.eye(4, dtype=torch.float64),
        )


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return PointMean()


@pytest.fixture
def make_detector():
    def make(seed=0):
        torch.manual_seed(seed)
        return PointMean()

    return make


@pytest.fixture
def clouds():
    return Clouds


@pytest.fixture
def short():
    """A training of 25 steps."""
    return TrainingConfig(steps=25, batch=4, optimizer=OptimizerConfig(lr=0.05), schedule=CosineSchedule())


@pytest.fixture
def run(tmp_path, make_detector, clouds, short):
    def call(config=short, *, folder="a", source=None, seed=0, task=None, keeping=None, reporter=None):
        reporter = reporter or SilentReporter()
        return train(
            task or SupervisedTask(make_detector()),
            source or clouds(),
            config,
            seed=seed,
            folder=tmp_path / folder,
            start=newest_sound(tmp_path / folder / "checkpoints", reporter.say),
            architectures={"raw": "abc", "method": "def"},
            title="training",
            reporter=reporter,
            accelerator=Accelerator(cpu=True),
            keeping=keeping,
        )

    return call


@pytest.fixture
def lines():
    """The log of a training, line by line."""

    def read(folder):
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return read


@pytest.fixture
def weights():
    """The newest weights of a training."""

    def read(folder):
        return load_file(latest(folder / "checkpoints").folder / "raw.safetensors")

    return read


class Mean(nn.Module):
    """Fits its own offset and the detector's scale to ones."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))

    def trained(self, detector):
        return [detector.scale]

    def forward(self, detector, batch):
        outputs = detector(batch, frozenset({"head"}))
        return Losses({"mean": Term((outputs.head[0]["value"].mean() + self.offset - 1.0).square().sum())})


@pytest.fixture
def pretraining(make_detector):
    def make():
        detector = make_detector()
        detector.untouched = nn.Linear(1, 1)
        nn.init.constant_(detector.untouched.weight, 2.0)
        return PretrainingTask(detector, Mean())

    return make
