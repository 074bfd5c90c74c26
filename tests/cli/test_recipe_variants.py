"""A hundred recipes that say the same in other words, or something else that is right, pass."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from bevkd.app import main
from bevkd_common.config.reading.loading import load_recipe, parse_recipe, resolved
from bevkd_common.config.reading.yaml_tree import render

RECIPE = parse_recipe((Path(__file__).parent / "minimal.yaml").read_text(), "minimal")
BASE = resolved(RECIPE)


def in_other_words(data: Any, rng: random.Random) -> str:
    """The same recipe in another notation."""
    text = rng.choice([render(data), json.dumps(data), json.dumps(data, indent=rng.choice([1, 2, 7]))])
    if not text.startswith("{"):
        remarks = ["", "", "  # why", "\n", "\n# a remark: [with brackets"]
        text = "\n".join(line + rng.choice(remarks) for line in text.splitlines())
    text = rng.choice(["", "---\n", "# A header.\n\n", "\ufeff"]) + text + rng.choice(["", "\n", "\n...\n"])
    return text.replace("\n", "\r\n") if rng.random() < 0.3 else text


def reordered(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key], rng) for key in rng.sample(list(value), len(value))}
    return [reordered(item, rng) for item in value] if isinstance(value, list) else value


OPTIONAL = [
    ("teacher_checkpoint",),
    ("evaluation",),
    ("dataset", "images"),
    ("dataset", "bev_augmentation", "flip_x"),
    ("dataset", "world", "objects"),
    ("dataset", "world", "objects", "car"),
    ("teacher", "head", "nms"),
    ("teacher", "pillar"),
    ("teacher_training", "optimizer", "betas"),
    ("teacher_training", "ema", "decay"),
    ("student", "head"),
    ("student", "depth_bins"),
    ("student", "bev_stages"),
    ("student_training", "schedule"),
    ("student_training", "epochs"),
    ("method", "preset"),
    ("method", "taps"),
]
"""Keys that have their default in the minimal recipe."""


def without_defaults(rng: random.Random) -> Any:
    """The recipe without some of the keys that may be left out."""
    data = copy.deepcopy(BASE)
    for *above, key in rng.sample(OPTIONAL, 6):
        section = data
        for step in above:
            section = section.get(step, {})
        section.pop(key, None)
    return data


def with_whole_numbers(value: Any) -> Any:
    """The recipe with `35.0` written as `35`."""
    if isinstance(value, dict):
        return {key: with_whole_numbers(child) for key, child in value.items()}
    if isinstance(value, list):
        return [with_whole_numbers(child) for child in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


HARMLESS = [
    "student_training.optimizer.lr=1e-3",
    "student_training.optimizer.lr=.5E-2",
    "student_training.optimizer.weight_decay=0",
    "student_training.steps=1",
    "teacher_training={batch: 2, epochs: 3, optimizer: {lr: 1}}",
    "student_training.precision=bf16",
    "student_training.micro_batch=2",
    "student_training.schedule={kind: step}",
    "student_training.schedule={kind: one_cycle, low_beta: null}",
    "student_training.ema={decay: 0.99}",
    "student_training.clip_norm=null",
    "teacher_checkpoint=runs/a b/teacher.safetensors",
    "teacher_training.workers=4",
    "teacher.max_pillars=null",
    "seeds=[5, 0x10]",
    "world_seeds=null",
    "controls.0={name: as_long, base: baseline, equal_time: true}",
    "evaluation.bootstrap=0",
    "summary='Größe: 3 \u00d7 4'",
    "method.layers=[bev_neck]",
    "method.preset=official",
    "controls.1.name=losses_by_themselves",
    "dataset.world.train_scenes=2",
    "dataset.bev_augmentation=null",
]


def test_a_hundred_variants_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(20260101)
    file = tmp_path / "recipe.yaml"
    variants: dict[tuple[str, tuple[str, ...]], None] = {}
    while len(variants) < 100:
        data = rng.choice([reordered(BASE, rng), without_defaults(rng), with_whole_numbers(BASE)])
        overrides = tuple(rng.sample(HARMLESS, 2)) if len(variants) % 2 else ()
        variants[in_other_words(data, rng), overrides] = None
    for text, overrides in variants:
        file.write_bytes(text.encode())
        with pytest.raises(SystemExit) as ended:
            main(["config", "check", str(file), *(word for override in overrides for word in ("--set", override))])
        assert ended.value.code == 0, (text, overrides, capsys.readouterr().err)
        out, message = capsys.readouterr()
        assert (out.count("\n"), message) == (1, "")
        assert out.startswith(f"{file}: ok: ")
        if not overrides:
            assert load_recipe(file) == RECIPE
    assert len(variants) == 100
