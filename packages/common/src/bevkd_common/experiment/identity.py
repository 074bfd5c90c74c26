"""What determines a stage: the inputs of its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bevkd_common.config.methods import parts_of
from bevkd_common.config.model import Config
from bevkd_common.config.training import TrainingConfig
from bevkd_common.data.dataset import VirtualPointDataset
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm
from bevkd_common.experiment.build import dataset_spec, detector_spec, method_spec
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.sources import source_hash
from bevkd_common.experiment.stages import Stage, fingerprint


def arm_stage(lab: Laboratory, arm: Arm, teacher: Stage | None) -> Stage:
    """The stage of an arm; its fingerprint covers configuration, data, seed, parents and the sources it uses.

    Args:
        lab: The seed.
        arm: With a fixed number of steps.
        teacher: The stage of the teacher, for an arm with a method.

    Raises:
        UserError: If a file of the teacher cannot be read.
    """
    modules: list[str] = []
    inputs: dict[str, Any] = {}
    if arm.pretraining is not None:
        inputs["pretrained"] = pretraining_stage(lab, arm.detector, arm.pretraining).fingerprint
    if arm.role == "teacher" and lab.recipe.teacher_checkpoint is not None:
        inputs["checkpoint"] = _content(lab.recipe.teacher_checkpoint)
    if (files := detector_spec(arm.detector).finished) is not None:
        inputs["files"] = [_content(file) for file in files(arm.detector)]
    kind: str = "baseline" if arm.method is None else "distilled"
    if arm.method is not None:
        assert teacher is not None
        methods = dict.fromkeys(method_spec(config).build for config in (arm.method, *parts_of(arm.method)))
        modules += map(_module, (detector_spec(lab.recipe.teacher).build, *methods))
        inputs |= {
            "method": dumped(arm.method),
            "teacher": teacher.fingerprint,
            "teacher_precision": lab.recipe.teacher_precision,
            "teacher_cache": lab.recipe.teacher_cache,
        }
    inputs |= _inputs(lab, arm.detector, arm.training, modules)
    return Stage("teacher" if arm.role == "teacher" else kind, inputs, lab.root)


def pretraining_stage(lab: Laboratory, detector: Config, training: TrainingConfig) -> Stage:
    """The stage that pretrains a part of a detector; arms with the same detector share it."""
    reference = detector_spec(detector).pretraining
    assert reference is not None
    return Stage("pretraining", _inputs(lab, detector, training, [_module(reference)]), lab.root)


def evaluation_fingerprint(lab: Laboratory) -> str:
    """Hash of what determines the scores of given weights."""
    spec = dataset_spec(lab.recipe.dataset)
    sources = source_hash([_module(spec.build_evaluator), "bevkd_common.engine.evaluate"])
    return fingerprint([dumped(lab.recipe.dataset), lab.dataset.fingerprint, sources])


def dumped(config: Config) -> dict[str, Any]:
    """A configuration as JSON-ready data."""
    return config.model_dump(mode="json")


def _inputs(lab: Laboratory, detector: Config, training: TrainingConfig, modules: Sequence[str]) -> dict[str, Any]:
    """What determines any training of a detector on this data; `modules` are used beside the usual ones."""
    used = ["bevkd_common.engine.train", _module(dataset_spec(lab.recipe.dataset).build)]
    used += [_module(detector_spec(detector).build), *modules]
    extras = {}
    if detector_spec(detector).virtual_points(detector) and isinstance(lab.dataset, VirtualPointDataset):
        extras["virtual_points"] = lab.dataset.virtual_points.manifest.settings_hash
    return {
        **extras,
        "detector": dumped(detector),
        "training": dumped(training),
        "dataset": dumped(lab.recipe.dataset),
        "data": lab.dataset.fingerprint,
        "seed": lab.seed,
        "sources": source_hash(used),
    }


def _content(path: Path) -> str:
    """Hash of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"the teacher's file {path} cannot be read: {error.strerror}") from None


def _module(reference: str) -> str:
    return reference.partition(":")[0]
