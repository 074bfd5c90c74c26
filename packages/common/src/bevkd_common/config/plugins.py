"""Detectors, methods and data sets that are installed, found through entry points.

An entry point resolves to one of the specs below. A spec imports no torch: it names a config class and, as
`"module:function"`, what builds the real thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from bevkd_common.config.model import Config


@dataclass(frozen=True)
class DetectorSpec:
    """A detector: group `bevkd.detectors`.

    Attributes:
        kind: The value of `kind` in a recipe; the config class discriminates on it.
        config: Its configuration.
        build: "module:function" of `build(config, classes: tuple[str, ...]) -> nn.Module` (a `Detector`).
        summary: One line for listings.
    """

    kind: str
    config: type[Config]
    build: str
    summary: str


@dataclass(frozen=True)
class DatasetSpec:
    """A data set and its evaluator: group `bevkd.datasets`.

    Attributes:
        kind: The value of `kind` in a recipe.
        config: Its configuration.
        build: "module:function" of `build(config, root: Path, progress) -> Dataset`; `root` is the folder given
            with `--data-root`, or the cache folder for data that can be made; `progress(done, total)` reports.
        build_evaluator: "module:function" of `build(config, dataset, split) -> Evaluator`.
        summary: One line for listings.
    """

    kind: str
    config: type[Config]
    build: str
    build_evaluator: str
    summary: str


@dataclass(frozen=True)
class Ablation:
    """One row of a method's own ablation: overrides of the recipe's `method` section, and a sentence."""

    summary: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class MethodSpec:
    """A distillation method: group `bevkd.methods`.

    Attributes:
        kind: The value of `kind` in a recipe's `method` section, and METHOD on the command line.
        title: As the paper calls it.
        paper: Citation in one line.
        config: Its configuration.
        build: "module:function" of `build(config, teacher: Taps, student: Taps) -> nn.Module` (a `Method`).
        recipes: Package that holds the recipes as YAML resources ("distillbev.recipes").
        ablations: The method's own ablations by name.
        departures: "module:function" of `departures(config) -> list[str]`, torch-free: one sentence for each
            setting that differs from the paper's recipe.
    """

    kind: str
    title: str
    paper: str
    config: type[Config]
    build: str
    recipes: str
    ablations: Mapping[str, Ablation] = field(default_factory=dict)
    departures: str | None = None


PluginSpec = DetectorSpec | DatasetSpec | MethodSpec


def load(reference: str) -> Any:
    """Import what `"module:attribute"` names."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)
