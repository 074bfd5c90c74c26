"""Several methods at once, as one method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from bevkd_common.config.model import Config
from bevkd_common.config.plugins import MethodSpec, installed
from bevkd_common.config.recipe import kind_of


def _different_kinds(parts: tuple[Config, ...]) -> tuple[Config, ...]:
    kinds = [installed(MethodSpec).of(part).kind for part in parts]
    for index, kind in enumerate(kinds):
        if kind in kinds[:index]:
            raise ValueError(f"holds the method `{kind}` twice")
    return parts


class StackConfig(Config):
    """A stack of methods, whose losses are added."""

    # The choices for `parts` depend on what is installed; this class is one of it.
    model_config = ConfigDict(defer_build=True)

    kind: Literal["stack"] = "stack"
    parts: Annotated[
        tuple[Annotated[Config, kind_of(MethodSpec, where=lambda spec: spec.parts is None)], ...],
        Field(min_length=2),
        AfterValidator(_different_kinds),
    ]
    """The methods, in the order in which they prepare the student; each of another kind."""
