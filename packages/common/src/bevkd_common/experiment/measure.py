"""Time and memory of an experiment, estimated from a few real steps of each training."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from bevkd_common.config.reading.loading import dump, load_recipe
from bevkd_common.config.recipe import Recipe
from bevkd_common.engine.train import Rehearsal
from bevkd_common.errors import TrainingStoppedError, UserError
from bevkd_common.experiment.build import dataset_spec
from bevkd_common.experiment.execution import open_dataset
from bevkd_common.experiment.graph import Node
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.request import Request, requested_stages
from bevkd_common.experiment.training import rehearse_arm, rehearse_pretraining
from bevkd_common.progress import Reporter, SilentReporter

ROOM = 0.95
"""Share of the memory that a training may use; the rest is left to the system."""


@dataclass(frozen=True)
class Estimate:
    """Time and memory of one training.

    Attributes:
        title: Title of the stage.
        rehearsal: The measurement; None if the process was killed or ran out of memory.
        memory: Memory of the machine or GPU in bytes.
    """

    title: str
    rehearsal: Rehearsal | None
    memory: int

    @property
    def fits(self) -> bool:
        """Whether the memory is sufficient."""
        return self.rehearsal is not None and self.rehearsal.memory < ROOM * self.memory

    @property
    def hours(self) -> float:
        """Hours of the whole training at the measured pace."""
        return self.rehearsal.steps * self.rehearsal.step_s / 3600 if self.rehearsal else float("nan")


def stand_in(recipe: Recipe, request: Request) -> Recipe | None:
    """The same recipe on a few generated samples; None if a data root is given or no stand-in exists."""
    spec = dataset_spec(recipe.dataset)
    if request.data_root is not None or spec.stand_in is None:
        return None
    return recipe.model_copy(update={"dataset": spec.stand_in(recipe.dataset)})


def estimate(recipe: Recipe, request: Request, reporter: Reporter, *, cpu: bool) -> list[Estimate]:
    """Measure every training of one seed, each in its own process to measure its own peak memory.

    Arms that train the same model in the same way are measured once.

    Args:
        recipe: The experiment.
        request: The arms, and the data root.
        reporter: Receives the progress.
        cpu: Whether to use the CPU only.

    Raises:
        UserError: If the data is missing, or a training fails for a reason other than memory.
    """
    names = list(_trained_nodes(recipe, request))
    open_dataset(
        recipe, request.seeds[0], data_root=request.data_root, runs=request.out.parent, reporter=reporter
    )  # data that can be generated is generated once, before the measurements
    found = []
    with reporter.bar("measuring", len(names)) as bar:
        for done, name in enumerate(names, start=1):
            found.append(Estimate(name, _in_a_process(recipe, request, name, cpu=cpu), _memory(cpu=cpu)))
            bar.update(done, note=name)
    return found


def _in_a_process(recipe: Recipe, request: Request, name: str, *, cpu: bool) -> Rehearsal | None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        process = multiprocessing.get_context("spawn").Process(target=_measure, args=(folder, request, name, cpu))
        process.start()
        process.join()
        answer = Path(folder) / "answer.json"
        if answer.is_file():
            content = json.loads(answer.read_text(encoding="utf-8"))
            if "error" in content:
                raise UserError(f"{name}: {content['error']}")
            return Rehearsal(**content) if content else None
    if process.exitcode == -signal.SIGKILL:
        return None
    raise UserError(f"measuring {name} ended with exit code {process.exitcode}; see its messages above")


def _measure(folder: str, request: Request, name: str, cpu: bool) -> None:
    recipe = load_recipe(Path(folder) / "recipe.yaml")
    answer: dict[str, object] = {}
    try:
        answer = asdict(_rehearsal(recipe, request, name, cpu=cpu))
    except (UserError, TrainingStoppedError) as error:
        answer = {"error": str(error)}
    except torch.OutOfMemoryError:
        pass
    (Path(folder) / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def _rehearsal(recipe: Recipe, request: Request, name: str, *, cpu: bool) -> Rehearsal:
    reporter, seed = SilentReporter(), request.seeds[0]
    runs = request.out.parent
    dataset = open_dataset(recipe, seed, data_root=request.data_root, runs=runs, reporter=reporter)
    accelerator = Accelerator(cpu=cpu)
    lab = Laboratory(recipe, dataset, seed=seed, root=runs, reporter=reporter, accelerator=accelerator)
    node = _trained_nodes(recipe, request)[name]
    if node.pretrains:
        assert node.arm.pretraining is not None
        return rehearse_pretraining(lab, node.arm, node.arm.pretraining)
    return rehearse_arm(lab, node.arm)


def _trained_nodes(recipe: Recipe, request: Request) -> dict[str, Node]:
    """The stages that are trained: all except a teacher whose weights are loaded."""
    return {
        name: node
        for name, node in requested_stages(recipe, request).items()
        if name != "teacher" or recipe.teacher_training is not None
    }


def _memory(*, cpu: bool) -> int:
    if not cpu:
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
