"""One seed of an experiment: its data, its device and its trained models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from bevkd_common.config.model import Config
from bevkd_common.config.recipe import Recipe
from bevkd_common.data.dataset import Dataset
from bevkd_common.engine.checkpoint import load_weights
from bevkd_common.experiment.build import architecture_hash, build_detector, build_method
from bevkd_common.experiment.stages import alone_in, stage_weights
from bevkd_common.progress import Reporter

if TYPE_CHECKING:
    from bevkd_common.distill.method import MethodModule
    from bevkd_common.models.detector import DetectorModule


@dataclass(frozen=True)
class Laboratory:
    """What every stage of one seed shares.

    Stages are identified in `identity`, trained in `training` and scored in `scoring`.

    Attributes:
        recipe: The experiment.
        dataset: The data of this seed.
        seed: Of the experiment.
        root: The folder that holds `.stages`.
        reporter: Where progress goes.
        accelerator: Device and processes.
        side_by_side: How many stages may be trained at the same time on this machine; recorded with their times.
    """

    recipe: Recipe
    dataset: Dataset
    seed: int
    root: Path
    reporter: Reporter
    accelerator: Accelerator
    side_by_side: int = 1

    @property
    def names(self) -> tuple[str, str]:
        """Names of teacher and student, for messages."""
        return self.recipe.selects.teacher, self.recipe.selects.student

    def architecture(self, config: Config) -> str:
        """Hash of a detector's architecture on this data."""
        return architecture_hash(config, self.dataset.classes)

    def build(self, config: Config) -> DetectorModule:
        """An untrained detector; equal configurations give equal initial weights."""
        return build_detector(config, self.dataset.classes, seed=self.seed)

    def detector(self, config: Config, folder: Path, kind: str | None = None) -> DetectorModule:
        """A trained detector on the device, in eval mode.

        Args:
            config: Its configuration.
            folder: Of its stage.
            kind: Which weights; None takes those that the arm is judged by.
        """
        weights = stage_weights(folder)
        detector = self.build(config)
        kind = kind or ("ema" if "ema" in weights else "raw")
        load_weights(weights[kind], detector, architecture=self.architecture(config))
        return detector.to(self.accelerator.device).eval()

    def method(
        self, config: Config, folder: Path, teacher: DetectorModule, student: DetectorModule
    ) -> MethodModule:
        """A trained method on the device, in eval mode."""
        method = build_method(config, teacher, student, names=self.names)
        weights = stage_weights(folder)
        if "method" in weights:
            load_weights(weights["method"], method)
        return method.to(self.accelerator.device).eval()

    @contextmanager
    def alone(self, folder: Path) -> Iterator[None]:
        """Lock a stage's folder against other experiments; the stage may be done when the lock is taken."""
        if self.accelerator.is_main_process:
            # The other processes of this one would give up before a long wait is over.
            with alone_in(folder, wait=self.accelerator.num_processes == 1, say=self.reporter.say):
                self.accelerator.wait_for_everyone()
                yield
        else:
            self.accelerator.wait_for_everyone()
            yield
