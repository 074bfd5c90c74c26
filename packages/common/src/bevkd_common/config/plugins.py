"""Installed detectors, methods and data sets, found through entry points.

An entry point resolves to one of the specs below and has the name of its `kind`. A spec imports no torch: it
refers to a config class, and to functions as `"module:function"`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, get_type_hints

from bevkd_common.config.model import Config
from bevkd_common.config.wording import did_you_mean, one_of, shorten
from bevkd_common.errors import UserError

LONGEST_NAME = 200
UNNAMED = "an unnamed distribution"
_log = logging.getLogger(__name__)


def _none(config: Any) -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True)
class DetectorSpec:
    """A detector: group `bevkd.detectors`.

    Attributes:
        kind: The value of `kind` in a recipe; the config class discriminates on it.
        config: Its configuration.
        build: "module:function" of `build(config, classes: tuple[str, ...]) -> nn.Module` (a `Detector`).
        summary: One line for listings.
        describe: A short description of the detector for the printed plan, with its backbone.
        check: "module:function" of `check(config, dataset_config) -> Iterable[tuple[str, str]]`, torch-free: for
            each thing that does not fit the data, a key within the detector's section and a reason.
        clouds: Names of the point clouds that a configuration reads; the data set may have to make them first.
        pretraining: "module:function" of `pretraining(config, classes) -> nn.Module` (a `Pretraining`), for a
            detector of which a part can be pretrained.
        released: "module:attribute" of a sequence of `ReleasedForm`s, where checkpoints of other code bases can be
            imported.
        finished: For a detector that comes with its weights and is never trained, the files that it is built from.
    """

    kind: str
    config: type[Config]
    build: str
    summary: str
    describe: Callable[[Any], str]
    check: str | None = None
    pretraining: str | None = None
    clouds: Callable[[Any], frozenset[str]] = _none
    released: str | None = None
    finished: Callable[[Any], tuple[Path, ...]] | None = None


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at in a folder.

    Attributes:
        state: "red" must be repaired, "optional" may be.
        what: Its name.
        found: What was found.
        repair: The command or action that repairs it; empty where there is nothing to repair.
    """

    state: Literal["ok", "optional", "red"]
    what: str
    found: str
    repair: str = ""


@dataclass(frozen=True)
class FolderTools:
    """What the command line does with a folder of a data set; all but `recognize` are "module:function".

    Attributes:
        recognize: Whether a folder holds data of this kind; torch-free and quick.
        check: `check(root, version, *, samples, reporter) -> DataCheck`.
        diagnose: `diagnose(root) -> Iterable[Diagnosis]`, torch-free; None where to recognise the folder is enough.
        index: `index(root, version, *, allow_missing, rebuild, reporter) -> str` prepares what later runs read, and
            returns one line; None where they read the files themselves.
        score_file: `score_file(path, root, *, version, split, engine, reporter) -> ScoredFile` scores a file of
            detections that any tool wrote; None where there is no format for it.
        foreign: What a folder of other data is that may be taken for this kind, as a clause with the advice; it
            returns None for data of this kind and for a folder that is not known. Torch-free and quick.
        virtual_points: `make(root, version, *, masks, weights, official, settings, out, sweeps, workers, reporter)
            -> Iterable[str]` makes virtual points, and returns lines; None where they cannot be made.
    """

    recognize: Callable[[Path], bool]
    check: str
    diagnose: str | None = None
    index: str | None = None
    score_file: str | None = None
    virtual_points: str | None = None
    foreign: Callable[[Path], str | None] | None = None


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
        classes_of: From a configuration to the class names in label order.
        build_submission: "module:function" of `build(config, dataset, split) -> Submission`, where the data set has
            an official benchmark.
        split_keys: Keys of the configuration that name the version and the split that is evaluated, where another
            one can be chosen for a submission.
        seed_key: Dotted key within the configuration that seeds data which are made; None for data that exist.
        stand_in: For data that exist: from their configuration to that of a few made samples of the same sizes, on
            which a training can be measured where the data are not at hand.
        folder: For data that exist: what the command line does with a folder of them.
    """

    kind: str
    config: type[Config]
    build: str
    build_evaluator: str
    summary: str
    classes_of: Callable[[Any], tuple[str, ...]]
    build_submission: str | None = None
    split_keys: tuple[str, str] | None = None
    seed_key: str | None = None
    stand_in: Callable[[Any], Config] | None = None
    folder: FolderTools | None = None


@dataclass(frozen=True)
class Ablation:
    """One ablation of a method: overrides of the recipe's `method` section, and a sentence."""

    summary: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class MethodSpec:
    """A distillation method: group `bevkd.methods`.

    Attributes:
        kind: The value of `kind` in a recipe's `method` section, and METHOD on the command line.
        title: Name in the paper.
        paper: Citation in one line.
        config: Its configuration.
        build: "module:function" of `build(config, teacher: Taps, student: Taps) -> nn.Module` (a `Method`).
        recipes: Package that holds the method's sections for pair recipes as YAML resources ("distillbev.recipes"),
            each named after its pair; a pair without a section is distilled with the defaults of `config`.
        ablations: The method's own ablations by name.
        departures: "module:function" of `departures(config, student) -> list[str]`, torch-free: one sentence for
            each setting that differs from the paper's recipe for students like this one, given its configuration.
        published: "module:function" of `published(teacher, student) -> list[PaperRow]`, torch-free: the paper's
            rows for the pair that a recipe selects, the student alone first; empty for pairs not in the paper.
        published_ablations: "module:function" of `published_ablations() -> Mapping[str, PaperRow]`, torch-free: the
            paper's rows for some of `ablations`, by name.
        parts: For a stack of methods, the configurations of its parts.
    """

    kind: str
    title: str
    paper: str
    config: type[Config]
    build: str
    recipes: str | None = None
    ablations: Mapping[str, Ablation] = field(default_factory=dict)
    departures: str | None = None
    published: str | None = None
    published_ablations: str | None = None
    parts: Callable[[Any], tuple[Config, ...]] | None = None

    @property
    def summary(self) -> str:
        """One line for listings."""
        return self.paper


PluginSpec = DetectorSpec | DatasetSpec | MethodSpec
Spec = TypeVar("Spec", bound=PluginSpec)

GROUPS: Mapping[type[PluginSpec], tuple[str, str]] = {
    DetectorSpec: ("bevkd.detectors", "detector"),
    DatasetSpec: ("bevkd.datasets", "data set"),
    MethodSpec: ("bevkd.methods", "method"),
}
"""Entry-point group and noun of each sort of plug-in."""


@dataclass(frozen=True)
class Installed(Generic[Spec]):
    """The plug-ins of one group.

    Attributes:
        noun: Name of one of them in messages.
        found: Specs by kind.
        broken: For each kind that cannot be used, the reason.
        origin: Distribution and version of each kind, found or broken.
    """

    noun: str
    found: Mapping[str, Spec]
    broken: Mapping[str, str]
    origin: Mapping[str, str]

    def find(self, kind: str) -> Spec:
        """The spec of a kind.

        Raises:
            UserError: If it is broken or not installed.
        """
        if kind not in self.found:
            raise UserError(self.why_not(kind))
        return self.found[kind]

    def why_not(self, kind: str) -> str:
        """Why a kind was not found: the cause of its failure, or the installed choices."""
        if len(kind) > LONGEST_NAME:
            return f"no {self.noun} `{shorten(kind)}` is installed"
        if kind in self.broken:
            return f"the {self.noun} `{kind}` cannot be used: {self.broken[kind]}"
        choices = f", only {one_of(self.found)}" if self.found else ""
        return f"no {self.noun} `{kind}` is installed{choices}{did_you_mean(kind, self.found)}"

    def of(self, config: Config) -> Spec:
        """The spec to which a configuration belongs, by its `kind`."""
        return self.found[getattr(config, "kind")]  # noqa: B009 - `Config` itself declares no `kind`


def installed(spec_type: type[Spec]) -> Installed[Spec]:
    """The installed plug-ins of one sort, working and broken, found once per process."""
    # mypy does not accept a class as hashable.
    return cast("Installed[Spec]", _discovered(spec_type))  # type: ignore[arg-type]


def entry_points_of(group: str) -> list[EntryPoint]:
    """The entry points of a group by name; a distribution whose list cannot be parsed has none."""
    try:
        points = list(entry_points(group=group))
    except Exception:  # one damaged distribution must not hide the others
        points = []
        for distribution in distributions():
            with suppress(Exception):
                points += distribution.entry_points.select(group=group)
    return sorted(points, key=lambda point: (point.name, point.value))


@cache
def _discovered(spec_type: type[PluginSpec]) -> Installed[PluginSpec]:
    group, noun = GROUPS[spec_type]
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points_of(group):
        points.setdefault(shorten(point.name), []).append(point)

    found: dict[str, PluginSpec] = {}
    broken: dict[str, str] = {}
    origin: dict[str, str] = {}
    for kind, rivals in points.items():
        origin[kind] = " and ".join(sorted(_distribution(point) for point in rivals))
        if len(rivals) > 1:
            broken[kind] = f"{origin[kind]} both provide it; uninstall one of them"
            continue
        try:
            found[kind] = _checked(rivals[0].load(), spec_type, kind)
        except BaseException as error:  # a plug-in can fail in any way, or exit, and the others stay usable
            broken[kind] = f"{origin[kind]} fails with {cause(error)}"
    return Installed(noun, found, broken, origin)


def cause(error: BaseException) -> str:
    """Type and message of an error of foreign code, on one line."""
    try:
        message = str(error)
    except Exception:  # foreign code again
        message = ""
    return shorten(f"{type(error).__name__}: {message}".rstrip(": "), 200)


def _distribution(point: EntryPoint) -> str:
    try:
        return shorten(f"{point.dist.name} {point.dist.version}") if point.dist else UNNAMED
    except Exception:  # its metadata are missing or damaged
        return UNNAMED


def _checked(spec: Any, spec_type: type[PluginSpec], kind: str) -> PluginSpec:
    if not isinstance(spec, spec_type):
        raise TypeError(f"its entry point gives {type(spec).__name__}, not {spec_type.__name__}")
    if spec.kind != kind:
        raise ValueError(f"its entry point is called `{kind}` but its spec `{spec.kind}`")
    config: Any = spec.config
    if not isinstance(config, type) or not issubclass(config, Config):
        raise TypeError(f"its configuration is {type(config).__name__} {config!r:.60}, not a subclass of Config")
    if "kind" not in config.model_fields:
        raise TypeError(f"its configuration {config.__name__} has no field `kind`")
    # A type that does not exist; raises NameError.
    get_type_hints(config)
    if not config.model_config.get("defer_build"):
        config.model_rebuild()
    if not isinstance(spec.summary, str) or not spec.summary.strip():
        raise TypeError("it has no summary")
    if not isinstance(spec.build, str) or ":" not in spec.build:
        raise TypeError("its `build` does not name a function as `module:function`")
    return spec


def recognized(root: Path) -> FolderTools:
    """The tools for the data set that a folder holds.

    Raises:
        UserError: If no installed data set recognises the folder.
    """
    known = {kind: spec.folder for kind, spec in installed(DatasetSpec).found.items() if spec.folder is not None}
    for kind, tools in known.items():
        try:
            found = tools.recognize(root) and (tools.foreign is None or tools.foreign(root) is None)
        except (Exception, SystemExit) as error:  # the others stay usable
            _log.warning("the data set `%s` fails to look at %s: %s", kind, root, cause(error))
            continue
        if found:
            return tools
    for tools in known.values():
        refuse_foreign(tools, root)
    why = f"it holds no data of {one_of(known)}" if root.is_dir() else "the folder does not exist"
    raise UserError(f"no data set at {root}: {why}; name the folder that the archives were unpacked to")


def refuse_foreign(tools: FolderTools | None, root: Path) -> None:
    """Refuse a folder that holds data of another kind, by the name of that kind.

    Raises:
        UserError: If it does.
    """
    if tools is not None and tools.foreign is not None and (known := tools.foreign(root)) is not None:
        raise UserError(f"{root} {known}")


def load(reference: str) -> Any:
    """Import `"module:attribute"`.

    Raises:
        UserError: If the module cannot be imported or lacks the attribute.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in can fail in any way
        name = shorten(reference)
        raise UserError(f"{name} cannot be loaded ({cause(error)}): repair or reinstall its package") from error
