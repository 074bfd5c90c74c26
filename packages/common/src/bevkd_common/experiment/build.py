"""Configs to live objects: the only place where both worlds meet."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bevkd_common.config.methods import parts_of
from bevkd_common.config.model import Config
from bevkd_common.config.plugins import DatasetSpec, DetectorSpec, MethodSpec, installed, load, refuse_foreign
from bevkd_common.config.recipe import Recipe
from bevkd_common.data.dataset import Dataset, SplitName
from bevkd_common.data.needs import DataNeeds
from bevkd_common.errors import UserError
from bevkd_common.evaluation.evaluator import Evaluator, Submission
from bevkd_common.experiment.stages import fingerprint
from bevkd_common.models.taps import Taps
from bevkd_common.progress import Reporter

if TYPE_CHECKING:
    from bevkd_common.distill.method import MethodModule
    from bevkd_common.models.detector import DetectorModule, PretrainingModule

MADE_DATA = ".data"
MOST_PARAMETERS = 1 << 42
"""Of a detector that is built at all: 16 TB in float32."""


def detector_spec(config: Config) -> DetectorSpec:
    """The plug-in behind a detector's configuration."""
    return installed(DetectorSpec).of(config)


def dataset_spec(config: Config) -> DatasetSpec:
    """The plug-in behind a data set's configuration."""
    return installed(DatasetSpec).of(config)


def method_spec(config: Config) -> MethodSpec:
    """The plug-in behind a method's configuration."""
    return installed(MethodSpec).of(config)


def built_from(recipe: Recipe) -> tuple[str, ...]:
    """The modules that build the data set, the detectors and the methods of a recipe."""
    built = [dataset_spec(recipe.dataset).build]
    built += [detector_spec(detector).build for detector in (recipe.teacher, recipe.student)]
    built += [method_spec(method).build for method in (recipe.method, *parts_of(recipe.method))]
    return tuple(dict.fromkeys(reference.partition(":")[0] for reference in built))


def data_needs(*detectors: Config) -> DataNeeds:
    """What detectors need of the data, as far as it is known before they are built: their point clouds."""
    return DataNeeds(clouds=frozenset().union(*(detector_spec(config).clouds(config) for config in detectors)))


def architecture_hash(config: Config, classes: tuple[str, ...]) -> str:
    """Hash of what determines the modules of a detector, and how they are used."""
    return fingerprint({"detector": config.model_dump(mode="json"), "classes": classes})


def build_detector(config: Config, classes: tuple[str, ...], *, seed: int) -> DetectorModule:
    """A detector whose initial weights depend on config, classes and seed alone."""
    torch.manual_seed(seed)
    return load(detector_spec(config).build)(config, classes)


def shape_of(config: Config, classes: tuple[str, ...]) -> DetectorModule:
    """A detector without memory for its weights; one that comes with its weights is built with them.

    Raises:
        UserError: If no machine has the memory for its weights.
    """
    spec = detector_spec(config)
    try:
        with nullcontext() if spec.finished else torch.device("meta"):
            detector = build_detector(config, classes, seed=0)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        reason = str(error).splitlines()[0]
    else:
        count = parameter_count(detector)
        if count <= MOST_PARAMETERS:
            return detector
        reason = f"{count:.1e} parameters"
    raise UserError(f"a {spec.kind} of these sizes fits into no memory ({reason}): lower them")


def build_pretraining(config: Config, classes: tuple[str, ...], *, seed: int) -> PretrainingModule:
    """The objective on which a part of a detector is trained first."""
    reference = detector_spec(config).pretraining
    assert reference is not None
    torch.manual_seed(seed)
    return load(reference)(config, classes)


def parameter_count(detector: nn.Module) -> int:
    """Learned parameters."""
    return sum(parameter.numel() for parameter in detector.parameters())


def build_method(
    config: Config, teacher: DetectorModule, student: DetectorModule, *, names: tuple[str, str]
) -> MethodModule:
    """A method between two detectors.

    Raises:
        UserError: If a tap is missing or does not fit.
    """
    taps = [Taps(name, detector.taps) for name, detector in zip(names, (teacher, student), strict=True)]
    return load(method_spec(config).build)(config, *taps)


def build_dataset(config: Config, *, data_root: Path | None, runs: Path, reporter: Reporter) -> Dataset:
    """A data set; data that can be made is made under `runs` where no folder is given.

    Raises:
        UserError: If the data is missing or damaged.
    """
    check_data_root(config, data_root)
    spec = dataset_spec(config)
    with reporter.bar(f"{spec.kind} data", 1) as bar:
        return load(spec.build)(config, data_root or runs / MADE_DATA, bar.update)


def check_data_root(config: Config, data_root: Path | None) -> None:
    """Ask for a folder that can be one.

    Raises:
        UserError: If data that is not made has none, or what was given is none.
    """
    kind, made = dataset_spec(config).kind, dataset_spec(config).seed_key is not None
    if data_root is None and not made:
        raise UserError(f"the data set `{kind}` is read from a disk: name its folder with --data-root")
    if data_root is not None and not data_root.is_dir() and (data_root.exists() or not made):
        raise UserError(f"{data_root} is no folder: name that of the {kind} data with --data-root")
    if data_root is not None and not made:
        refuse_foreign(dataset_spec(config).folder, data_root)


def build_submission(config: Config, dataset: Dataset, split: SplitName) -> Submission:
    """What collects detections for the data set's benchmark.

    Raises:
        UserError: If it has none.
    """
    reference = dataset_spec(config).build_submission
    if reference is None:
        raise UserError(f"{dataset.name} has no official submission: leave out --submission")
    return load(reference)(config, dataset, split)


def build_evaluator(config: Config, dataset: Dataset, split: SplitName) -> Evaluator:
    """The evaluator that is the data set's other half."""
    return load(dataset_spec(config).build_evaluator)(config, dataset, split)
