"""What is looked for before the first training of a seed: every file that an arm reads, and boxes to learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch

from bevkd_common.data.dataset import SplitName, VerifiableDataset
from bevkd_common.data.loader import ClassAwareSource
from bevkd_common.data.needs import DataNeeds
from bevkd_common.errors import UserError
from bevkd_common.experiment.build import build_pretraining, data_needs, shape_of
from bevkd_common.experiment.laboratory import Laboratory


def check_data(lab: Laboratory) -> None:
    """Open both splits as each detector of the recipe reads them.

    Raises:
        UserError: If a file or a need of a detector is missing, or a split has no box to learn.
    """
    for needs in _needs(lab):
        for split in get_args(SplitName):
            source = lab.dataset.source(split, needs)
            if isinstance(source, ClassAwareSource) and not any(map(source.classes_present, range(len(source)))):
                raise UserError(
                    f"no sample of the {split} split of {lab.dataset.name} has a box of the classes"
                    f" {', '.join(lab.dataset.classes)}: check the data, and the names of its categories"
                )


def verify_data(lab: Laboratory) -> None:
    """Read every file that teacher or student may read, and report those that changed.

    Raises:
        UserError: If the data set has no such check, or a file cannot be read.
    """
    if not isinstance(lab.dataset, VerifiableDataset):
        raise UserError(f"--verify-data: data of the kind {lab.dataset.name} cannot be verified; leave it out")
    found = lab.dataset.verify(data_needs(lab.recipe.teacher, lab.recipe.student), lab.reporter)
    if not found.changed:
        lab.reporter.say(f"data     {found.files} files read, none differs from what was recorded")
        return
    lab.reporter.say(
        f"data     {len(found.changed)} of {found.files} files differ from what was recorded, such as"
        f" {found.changed[0]}; stages that were trained on other content are not used"
    )


def _needs(lab: Laboratory) -> Iterator[DataNeeds]:
    """What each detector and each pretraining reads."""
    recipe, classes = lab.recipe, lab.dataset.classes
    for detector, pretraining in (
        (recipe.teacher, recipe.teacher_pretraining),
        (recipe.student, recipe.student_pretraining),
    ):
        yield shape_of(detector, classes).needs
        if pretraining is not None:
            with torch.device("meta"):
                yield build_pretraining(detector, classes, seed=0).needs
