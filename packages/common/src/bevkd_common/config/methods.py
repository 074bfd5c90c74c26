"""What a recipe's `method` section stands for: one method, or the parts of a stack.

The ablations, departures and published rows of a stack are those of its parts, each named after its part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import Ablation, MethodSpec, installed, load
from bevkd_common.config.published_rows import PaperRow


def parts_of(config: Config) -> tuple[Config, ...]:
    """The configuration of each part of a stack, or of the method itself."""
    parts = installed(MethodSpec).of(config).parts
    return parts(config) if parts is not None else (config,)


def kinds_of(config: Config) -> tuple[str, ...]:
    """The kind of each part."""
    return tuple(installed(MethodSpec).of(part).kind for part in parts_of(config))


def title(config: Config) -> str:
    """Titles of the parts: "DistillBEV + UniDistill"."""
    return " + ".join(installed(MethodSpec).of(part).title for part in parts_of(config))


def paper(config: Config) -> str:
    """Citations of the parts."""
    return "; ".join(installed(MethodSpec).of(part).paper for part in parts_of(config))


def ablations(kinds: Sequence[str]) -> dict[str, Ablation]:
    """The ablations of some methods; several are the parts of a stack in this order.

    Raises:
        UserError: If one of them is not installed.
    """
    found = {}
    for index, kind in enumerate(kinds):
        for name, ablation in installed(MethodSpec).find(kind).ablations.items():
            inner = ablation.overrides
            overrides = inner if len(kinds) == 1 else {f"parts.{index}.{key}": inner[key] for key in inner}
            found[_of_part(kinds, kind, name)] = replace(ablation, overrides=overrides)
    return found


def departures(config: Config, student: Config) -> list[str]:
    """One sentence for each setting that differs from the paper's recipe for students like this one."""
    parts = parts_of(config)
    sentences = []
    for part in parts:
        spec = installed(MethodSpec).of(part)
        prefix = f"{spec.title}: " if len(parts) > 1 else ""
        sentences += [prefix + it for it in load(spec.departures)(part, student)] if spec.departures else []
    return sentences


def published(kinds: Sequence[str], teacher: str, student: str) -> list[PaperRow]:
    """The rows that the papers of some methods print for a pair, as recipes select it."""
    rows: list[PaperRow] = []
    for kind in kinds:
        spec = installed(MethodSpec).find(kind)
        rows += load(spec.published)(teacher, student) if spec.published else []
    return rows


def published_ablations(kinds: Sequence[str]) -> dict[str, PaperRow]:
    """The rows that the papers print for some of the `ablations`."""
    rows = {}
    for kind in kinds:
        spec = installed(MethodSpec).find(kind)
        own: Mapping[str, PaperRow] = load(spec.published_ablations)() if spec.published_ablations else {}
        rows.update({_of_part(kinds, kind, name): row for name, row in own.items()})
    return rows


def _of_part(kinds: Sequence[str], kind: str, name: str) -> str:
    return f"{kind}_{name}" if len(kinds) > 1 else name
