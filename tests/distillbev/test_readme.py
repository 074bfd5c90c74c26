"""The example of the package's README."""

import math
import re
from pathlib import Path

import torch

README = Path(__file__).parents[2] / "packages" / "distillbev" / "README.md"


def test_the_example_takes_a_training_step():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(example.splitlines()) <= 35
    torch.manual_seed(0)
    scope: dict = {}
    exec(example, scope)
    terms = scope["terms"]
    expected = {f"distillation/bev_neck/{name}" for name in ("fg", "tn", "fp", "attention")}
    assert expected | {"detection/heatmap", "detection/boxes"} == terms.keys()
    assert all(math.isfinite(term.value.item()) for term in terms.values())
    assert all(terms[name].value.item() > 0 for name in expected)
    adapter = scope["method"].layers[0].adapter
    assert adapter.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in scope["teacher"].parameters())
    state = scope["optimizer"].state[adapter.weight]
    assert state["step"] == 1


def test_the_preset_table_names_every_quirk():
    from distillbev.config import OFFICIAL

    text = README.read_text("utf-8")
    assert all(f"`{name}`" in text for name in OFFICIAL)
    assert len(OFFICIAL) == 3
