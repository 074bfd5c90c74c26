"""What determines a stage: the inputs of its fingerprint."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bevkd_common.config.methods import parts_of
from bevkd_common.config.model import Config
from bevkd_common.config.training import TrainingConfig
from bevkd_common.data.needs import DataNeeds
from bevkd_common.errors import UserError
from bevkd_common.experiment.arms import Arm, fixed_length
from bevkd_common.experiment.build import data_needs, dataset_spec, detector_spec, method_spec
from bevkd_common.experiment.graph import Node
from bevkd_common.experiment.laboratory import Laboratory
from bevkd_common.experiment.sources import foreign_packages, source_hash
from bevkd_common.experiment.stages import Stage, fingerprint

COMPUTING_PACKAGES = ("torch", "torchvision", "timm", "numba")
"""Packages in which the numbers of a training are computed; another version may compute others."""


def identify(lab: Laboratory, graph: Mapping[str, Node]) -> dict[str, Stage]:
    """The stages of a graph by name, without those whose length depends on stages that are not trained."""
    found: dict[str, Stage] = {}
    for name, node in graph.items():
        if (stage := node_stage(lab, node, found)) is not None:
            found[name] = stage
    return found


def node_stage(lab: Laboratory, node: Node, found: Mapping[str, Stage]) -> Stage | None:
    """The stage of one node.

    Args:
        lab: The seed.
        node: One node of the graph.
        found: The stages of its parents.

    Returns:
        None for an arm of equal time while the arms that set its length are not trained.
    """
    if node.pretrains:
        assert node.arm.pretraining is not None
        return pretraining_stage(lab, node.arm.detector, node.arm.pretraining)
    arm = arm_of_fixed_length(node.arm, found)
    return None if arm is None else arm_stage(lab, arm, found.get("teacher"))


def arm_of_fixed_length(arm: Arm, found: Mapping[str, Stage]) -> Arm | None:
    """The arm with the number of steps that it is trained; None while the arms that set it are not trained."""
    if arm.as_long_as is None:
        return arm
    records = {name: found[name].trained if name in found else None for name in ("baseline", arm.as_long_as)}
    # The pace, not the clock: another program on the machine must not shorten or stretch an arm of equal time.
    seconds = {name: record["steps"] * record["step_s"] for name, record in records.items() if record is not None}
    return fixed_length(arm, seconds) if len(seconds) == len(records) else None


def arm_stage(lab: Laboratory, arm: Arm, teacher: Stage | None) -> Stage:
    """The stage of an arm; its fingerprint covers configuration, data, seed, parents and the sources it uses.

    Args:
        lab: The seed.
        arm: With a fixed number of steps.
        teacher: The stage of the teacher; read only for an arm with a method.

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
    return fingerprint([dumped(lab.recipe.dataset), lab.dataset.fingerprint(DataNeeds()), sources])


def dumped(config: Config) -> dict[str, Any]:
    """A configuration as JSON-ready data."""
    return config.model_dump(mode="json")


def _inputs(lab: Laboratory, detector: Config, training: TrainingConfig, modules: Sequence[str]) -> dict[str, Any]:
    """What determines any training of a detector on this data; `modules` are used beside the usual ones."""
    used = ["bevkd_common.engine.train", _module(dataset_spec(lab.recipe.dataset).build)]
    used += [_module(detector_spec(detector).build), *modules]
    return {
        "detector": dumped(detector),
        "training": dumped(training),
        "dataset": dumped(lab.recipe.dataset),
        "data": lab.dataset.fingerprint(data_needs(detector)),
        "seed": lab.seed,
        "sources": source_hash(used),
        "files": {key: _content(path) for key, path in _files(detector)},
        "versions": {name: importlib.metadata.version(name) for name in COMPUTING_PACKAGES},
        "packages": foreign_packages(used),
    }


def _files(config: Config, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """The files that a configuration names, such as pretrained weights, by the key that names them."""
    for key in type(config).model_fields:
        value = getattr(config, key)
        if isinstance(value, Path) and value.is_file():
            yield f"{prefix}{key}", value
        elif isinstance(value, Config):
            yield from _files(value, f"{prefix}{key}.")


def _content(path: Path) -> str:
    """Hash of a file, computed once for each state of the file."""
    try:
        about = path.stat()
        return _digest(path, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; the recipe names it") from None


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _module(reference: str) -> str:
    return reference.partition(":")[0]
