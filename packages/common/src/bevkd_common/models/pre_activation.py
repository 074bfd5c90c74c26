"""What the last ReLU of a BEV map reads: the map before its activation, and the batch norms that make it.

Source: A Comprehensive Overhaul of Feature Distillation (arXiv 1904.01866), which compares such maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from bevkd_common.models.taps import BevMap, TapSpec

SUFFIX = "_preactivation"


@runtime_checkable
class EndsInRelus(Protocol):
    """A module of the project that names its last ReLUs itself."""

    def last_activations(self) -> list[tuple[nn.Module, nn.Module]]:
        """See `last_activations`."""
        ...


def last_activations(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the ReLUs that make a module's output, in the order of its channels, each with its batch norm.

    Empty where the module does not end in a ReLU.
    """
    match module:
        case EndsInRelus():
            return module.last_activations()
        case BasicBlock():
            return [(module.relu, module.bn2)]
        case nn.Sequential() if isinstance(module[-1], nn.ReLU):
            return [(module[-1], module[-2])]
        case nn.Sequential():
            return last_activations(module[-1])
    return []


def preactivation_taps(taps: Mapping[str, TapSpec], modules: Mapping[str, nn.Module]) -> dict[str, TapSpec]:
    """Describe `{name}_preactivation` for each map that a module with a final ReLU makes.

    Args:
        taps: The taps of a detector.
        modules: Modules by the name of the map that they return.
    """
    norms = {name: tuple(norm_parts({name: module})) for name, module in modules.items()}
    return {
        name + SUFFIX: replace(spec, activation="none", norms=norms[name])
        for name, spec in taps.items()
        if isinstance(spec, BevMap) and norms.get(name)
    }


def norm_parts(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the batch norms before the last ReLUs as parts of a detector, `bev_neck.norm0` and so on."""
    return {
        f"{name}.norm{place}": norm
        for name, module in modules.items()
        for place, (_, norm) in enumerate(last_activations(module))
    }


def map_names(want: frozenset[str]) -> frozenset[str]:
    """Return the maps that have to be computed for the taps wanted."""
    return frozenset(name.removesuffix(SUFFIX) for name in want)


@contextmanager
def recorded(modules: Mapping[str, nn.Module], want: frozenset[str]) -> Iterator[dict[str, Tensor]]:
    """Record the pre-activation maps that are wanted while the modules run.

    Args:
        modules: Modules by the name of the map that they return.
        want: Taps that are wanted.

    Yields:
        A mapping that holds the maps by tap name once the context is left.
    """
    wanted = {name: last_activations(modules[name]) for name in modules if name + SUFFIX in want}
    seen: dict[nn.Module, Tensor] = {}

    def record(relu: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Copied, since the ReLU may act in place; a block may call its ReLU twice, the last call counts.
        seen[relu] = inputs[0].clone()

    handles = [relu.register_forward_pre_hook(record) for pairs in wanted.values() for relu, _ in pairs]
    found: dict[str, Tensor] = {}
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    found |= {name + SUFFIX: torch.cat([seen[relu] for relu, _ in pairs], dim=1) for name, pairs in wanted.items()}
