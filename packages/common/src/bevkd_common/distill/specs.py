"""Methods that come with the house; imports no torch."""

from __future__ import annotations

from bevkd_common.config.plugins import MethodSpec
from bevkd_common.config.stack import StackConfig

STACK = MethodSpec(
    kind="stack",
    title="Stack",
    paper="Several methods at once, whose losses are added",
    config=StackConfig,
    build="bevkd_common.distill.stack:build",
    parts=lambda config: config.parts,
)
