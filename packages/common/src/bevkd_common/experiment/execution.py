"""Training and scoring the stages of one seed in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from bevkd_common.config.reading.loading import load_recipe
from bevkd_common.config.recipe import Recipe
from bevkd_common.data.dataset import Dataset
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm, teacher_arm
from bevkd_common.experiment.build import build_dataset, data_needs
from bevkd_common.experiment.capacity import Capacity
from bevkd_common.experiment.graph import Job, Node, stage_graph
from bevkd_common.experiment.identity import arm_of_fixed_length, identify, node_stage
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.readiness import check_data
from bevkd_common.experiment.request import stages_for
from bevkd_common.experiment.scoring import kept_scores, score, score_line
from bevkd_common.experiment.stages import Stage
from bevkd_common.experiment.training import adopt, pretrain, train_arm
from bevkd_common.progress import Reporter

SOURCES_CHANGED = (
    "the source code or the data changed since the run started; the same command goes on with what is there now"
)


def open_laboratory(
    recipe: Recipe,
    seed: int,
    runs: Path,
    data_root: Path | None,
    reporter: Reporter,
    accelerator: Accelerator,
    side_by_side: int = 1,
) -> Laboratory:
    """One seed of a recipe with its data, which is made where it can be made and is not there."""
    with accelerator.main_process_first():
        dataset = open_dataset(recipe, seed, data_root=data_root, runs=runs, reporter=reporter)
    return Laboratory(recipe, dataset, seed, runs, reporter, accelerator, side_by_side)


def open_dataset(recipe: Recipe, seed: int, *, data_root: Path | None, runs: Path, reporter: Reporter) -> Dataset:
    """The data of one experiment seed; a made world takes the recipe's world seed at the same position.

    Derived data that a detector of the recipe reads is made with it, where the data set can make it.
    """
    dataset = build_dataset(recipe.dataset_for(seed), data_root=data_root, runs=runs, reporter=reporter)
    dataset.prepare(data_needs(recipe.teacher, recipe.student), reporter)
    return dataset


def train_job(machine: Capacity, job: Job, reporter: Reporter) -> None:
    """Train and score the stage of one job, whose parents are finished, in this process.

    Args:
        machine: What the stages share that are trained at the same time.
        job: The stage.
        reporter: Where progress goes.

    Raises:
        UserError: If the source code is another than the run's, so that this process would train another stage.
    """
    recipe = load_recipe(job.recipe)
    accelerator = Accelerator(cpu=machine.cpu)
    lab = open_laboratory(recipe, job.seed, job.out.parent, job.data_root, reporter, accelerator, machine.jobs)
    if job.fingerprint is not None:
        found = identify(lab, stages_for(recipe, job.arm))
        if found[job.arm].fingerprint != job.fingerprint:
            raise UserError(SOURCES_CHANGED)
    train_node(lab, job.arm)


def train_one(
    recipe: Recipe,
    name: str,
    *,
    runs: Path,
    data_root: Path | None,
    seed: int,
    reporter: Reporter,
    accelerator: Accelerator,
) -> Path:
    """Train and score one stage, and before it those that it needs; returns its folder.

    Args:
        recipe: The experiment.
        name: Of an arm, a control or an ablation of the method, or of a pretraining.
        runs: The folder that holds `.stages`.
        data_root: Folder of the data set.
        seed: Of the experiment.
        reporter: Where progress goes.
        accelerator: Device and processes.

    Raises:
        UserError: If there is no stage of that name.
    """
    lab = open_laboratory(recipe, seed, runs, data_root, reporter, accelerator)
    check_data(lab)
    return train_node(lab, name).folder


def train_node(lab: Laboratory, name: str) -> Stage:
    """Train and score one stage of a seed, and before it those that it needs and that are not trained.

    Raises:
        UserError: If there is no stage of that name.
    """
    graph = stages_for(lab.recipe, name)
    needed = _ancestors(graph, name)
    stages: dict[str, Stage] = {}
    for other in graph:
        if other in needed or other == name:
            known = node_stage(lab, graph[other], stages)
            if other != name and known is not None and known.trained is not None:
                stages[other] = known
            else:
                stages[other] = run_node(lab, graph[other], stages)
    return stages[name]


def _ancestors(graph: Mapping[str, Node], name: str) -> set[str]:
    parents = set(graph[name].parents)
    return parents.union(*(_ancestors(graph, parent) for parent in parents))


def run_seed(lab: Laboratory, recipe: Recipe, arms: Sequence[Arm]) -> Iterator[tuple[str, Stage]]:
    """Train and score the teacher and every arm of one seed in this process, pretrainings before their arms."""
    stages: dict[str, Stage] = {}
    for name, node in stage_graph(teacher_arm(recipe), arms).items():
        stages[name] = run_node(lab, node, stages)
        yield name, stages[name]


def run_node(lab: Laboratory, node: Node, stages: Mapping[str, Stage]) -> Stage:
    """Train and score one stage whose parents are in `stages`."""
    stage = node_stage(lab, node, stages)
    assert stage is not None
    if node.pretrains:
        pretrain(lab, node.arm)
        return stage
    arm, recipe = node.arm, lab.recipe
    if arm.as_long_as is not None:
        arm = arm_of_fixed_length(arm, stages) or arm
        _say_unequal_conditions(lab, node.arm, stages)
    if arm.role == "teacher" and (recipe.teacher_checkpoint is not None or recipe.teacher_training is None):
        adopt(lab, arm, stage, recipe.teacher_checkpoint)
    else:
        train_arm(lab, arm, stage, stages["teacher"] if arm.method is not None else None)
    lab.reporter.say(score_line(arm, score(lab, arm, stage.folder)))
    return stage


def is_finished(lab: Laboratory, node: Node, stage: Stage | None) -> bool:
    """Whether a stage is trained, and scored unless it is a pretraining."""
    if stage is None or stage.trained is None:
        return False
    return node.pretrains or kept_scores(lab, stage.folder) is not None


def _say_unequal_conditions(lab: Laboratory, arm: Arm, stages: Mapping[str, Stage]) -> None:
    """An arm of equal time compares two paces, which are comparable only with the same number of threads."""
    assert arm.as_long_as is not None
    threads = {name: (stages[name].trained or {}).get("threads") for name in ("baseline", arm.as_long_as)}
    if len(set(threads.values())) > 1:
        shown = " and ".join(f"{name} with {count} threads" for name, count in threads.items())
        lab.reporter.say(f"{arm.title}: its length is approximate, for {shown} were trained: use --restart")
