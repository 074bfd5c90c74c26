"""What is to be run of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bevkd_common.config.methods import ablations, kinds_of, published_ablations
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.wording import one_of
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm, ablation_arm, baseline_arm, control_arm, distilled_arm, teacher_arm
from bevkd_common.experiment.graph import PRETRAINING, Node, stage_graph
from bevkd_common.experiment.record import CONFIG, RunFolder, named


@dataclass(frozen=True)
class Request:
    """What is to be run, beside the recipe.

    Attributes:
        out: The run's folder; stages live beside it in `.stages`.
        data_root: Folder of the data set; None where the data can be made.
        seeds: Experiment seeds, taken from the recipe's.
        controls: Whether to train the recipe's controls too.
        ablations: Names of the method's ablations to train too.
        baseline: Whether to train the student alone.
        restart: Whether to throw away what an earlier run of this name did.
        verify_data: Whether to read all files of the data set first, to find what changed.
    """

    out: Path
    data_root: Path | None
    seeds: tuple[int, ...]
    controls: bool = False
    ablations: tuple[str, ...] = ()
    baseline: bool = True
    restart: bool = False
    verify_data: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", named(self.out))


def repeated(config: Path) -> Request | None:
    """What the run was asked for whose resolved recipe this is; None where the file is not that of a run."""
    folder = RunFolder(config.parent)
    if config.name != CONFIG or not (config.parent / "run.json").is_file():
        return None
    record = folder.read()
    return Request(
        out=config.parent,
        data_root=Path(record["data_root"]) if record["data_root"] else None,
        seeds=tuple(int(seed) for seed in record["seeds"]),
        controls=record["controls"],
        ablations=tuple(record["ablations"]),
        baseline=record["baseline"],
    )


def student_arms(recipe: Recipe, request: Request) -> list[Arm]:
    """The arms after the teacher, in the order they are trained.

    Raises:
        UserError: If an ablation is not known, or the baseline is left out from which an arm takes its pace.
    """
    arms = [baseline_arm(recipe)] if request.baseline else []
    arms.append(distilled_arm(recipe))
    if request.controls:
        arms += [control_arm(recipe, control) for control in recipe.controls]
    kinds = kinds_of(recipe.method)
    choices = ablations(kinds)
    paper = published_ablations(kinds) if request.ablations else {}
    for name in request.ablations:
        if name not in choices:
            raise UserError(f"{'+'.join(kinds)} has no ablation `{name}`: choose from {', '.join(sorted(choices))}")
        arms.append(ablation_arm(recipe, name, choices[name], paper.get(name)))
    if not request.baseline and (paced := [arm.name for arm in arms if arm.as_long_as is not None]):
        raise UserError(f"{one_of(paced)} takes its pace from the baseline: leave out --no-baseline")
    return arms


def requested_stages(recipe: Recipe, request: Request) -> dict[str, Node]:
    """The stages of one seed of a run."""
    return stage_graph(teacher_arm(recipe), student_arms(recipe, request))


def stages_for(recipe: Recipe, name: str) -> dict[str, Node]:
    """The stages of one seed that an arm or a pretraining may need, the named one among them.

    Controls and ablations that are not named are not built: those of a method need not fit every recipe.

    Args:
        recipe: The experiment.
        name: Of an arm, a control or an ablation of the method, or of a pretraining.

    Raises:
        UserError: If there is none of that name.
    """
    controls = {control.name: control for control in recipe.controls}
    changes = ablations(kinds_of(recipe.method))
    arms = [baseline_arm(recipe), distilled_arm(recipe)]
    other = name.removesuffix(f"_{PRETRAINING}")
    if other in controls:
        arms.append(control_arm(recipe, controls[other]))
    elif other in changes:
        arms.append(ablation_arm(recipe, other, changes[other], None))
    graph = stage_graph(teacher_arm(recipe), arms)
    if name not in graph:
        choices = dict.fromkeys((*graph, *controls, *changes))
        raise UserError(f"no arm is called `{name}`: choose from {', '.join(choices)}")
    return graph
