"""Five hundred recipes that cannot be right end with one clear message.

What makes a mutation wrong is read from the published JSON schema, or built into its text.
"""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bevkd.app import main
from bevkd_common.config.reading.loading import dump, parse_recipe, resolved, schema
from bevkd_common.config.reading.yaml_tree import render

Route = tuple[str | int, ...]
"""Keys and indices from the root of a recipe to a value."""

MINIMAL = (Path(__file__).parent / "minimal.yaml").read_text()
RECIPE = parse_recipe(MINIMAL, "minimal")
BASE = resolved(RECIPE)
TEXT = dump(RECIPE)
SCHEMA = schema()


@dataclass(frozen=True)
class Mutant:
    """A file, overrides, and what the message must mention.

    `rewritten` is the sound recipe with one value replaced: a route and the new value as JSON.
    """

    file: bytes = TEXT.encode()
    overrides: tuple[str, ...] = ()
    mentions: str = ""
    rewritten: tuple[Route, str] | None = None

    def text(self) -> bytes:
        if self.rewritten is None:
            return self.file
        route, value = self.rewritten
        return render(edited(BASE, route, json.loads(value))).encode()


def edited(data: Any, route: Route, value: Any) -> Any:
    if not route:
        return value
    children = copy.copy(data)
    step, *rest = route
    children[step] = edited(children[step], tuple(rest), value) if rest else value
    return children


def dotted(route: Route) -> str:
    return ".".join(map(str, route))


def replaced(route: Route, value: Any, rng: random.Random) -> Mutant:
    """The value in the file, or in an override of the sound file."""
    if rng.random() < 0.5:
        return Mutant(rewritten=(route, json.dumps(value)), mentions=dotted(route))
    return Mutant(overrides=(f"{dotted(route)}={json.dumps(value)}",), mentions=dotted(route))


# Data and schema, side by side.


def walk(value: Any, route: Route = ()) -> Iterator[tuple[Route, Any]]:
    yield route, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, child in children:
        yield from walk(child, (*route, step))


def members(described: dict[str, Any], value: Any) -> Iterator[dict[str, Any]]:
    """The schemas without unions and references that may describe a value; its `kind` decides."""
    if "$ref" in described:
        yield from members(SCHEMA["$defs"][described["$ref"].rpartition("/")[2]], value)
    elif union := described.get("anyOf") or described.get("oneOf"):
        for member in union:
            yield from members(member, value)
    else:
        kind = described.get("properties", {}).get("kind", {}).get("const")
        if kind is None or (isinstance(value, dict) and value.get("kind") == kind):
            yield described


def schemas_at(route: Route) -> list[dict[str, Any]]:
    value: Any = BASE
    found = list(members(SCHEMA, value))
    for step in route:
        value = value[step]
        inner: list[dict[str, Any]] = []
        for each in found:
            if isinstance(step, str):
                inner += [each["properties"][step]] if step in each.get("properties", ()) else []
            elif each.get("type") == "array":
                inner += each.get("prefixItems", [])[step : step + 1] or [each["items"]]
        found = [member for each in inner for member in members(each, value)]
    return found


def closed_sections() -> Iterator[tuple[Route, dict[str, Any], dict[str, Any]]]:
    for route, value in walk(BASE):
        for described in schemas_at(route):
            if isinstance(value, dict) and described.get("additionalProperties") is False:
                yield route, value, described


# Mutations that cannot be right.


SAMPLES: dict[str, list[Any]] = {
    "string": ["a word", "7", "3e-3"],
    "number": [0.125],
    "integer": [7],
    "boolean": [True],
    "null": [None],
    "array": [[], [[1]]],
    "object": [{"a": 1}],
}

OUTSIDE: dict[str, Callable[[Any, Any], list[Any]]] = {
    "exclusiveMinimum": lambda bound, _: [bound, bound - 1, -(10**9)],
    "minimum": lambda bound, _: [bound - 1, -(10**9)],
    "exclusiveMaximum": lambda bound, _: [bound, bound + 1],
    "maximum": lambda bound, _: [bound + 1, 10**9],
    "enum": lambda bound, _: [f"not_{bound[0]}", bound[0].upper(), ""],
    "pattern": lambda _, __: ["Not a name", ""],
    "minLength": lambda _, __: [""],
    "maxLength": lambda bound, _: ["x" * (bound + 1)],
    "minItems": lambda bound, value: [value[: bound - 1]] if bound else [],
    "maxItems": lambda _, value: [value + value[-1:]],
}


def wrong_types(rng: random.Random) -> Iterator[Mutant]:
    for route, value in walk(BASE):
        described = schemas_at(route)
        types = {each.get("type", "string" if "enum" in each or "const" in each else "any") for each in described}
        if not route or not types or "any" in types:
            continue
        allowed = types | ({"integer"} if "number" in types else set())
        for kind in sorted(SAMPLES.keys() - allowed):
            yield from (replaced(route, sample, rng) for sample in SAMPLES[kind] if sample != value)


def out_of_range(rng: random.Random) -> Iterator[Mutant]:
    for route, value in walk(BASE):
        described = [each for each in schemas_at(route) if each.get("type") != "null"]
        if len(described) == 1:
            for limit in sorted(OUTSIDE.keys() & described[0].keys()):
                yield from (replaced(route, each, rng) for each in OUTSIDE[limit](described[0][limit], value))


def unknown_keys(rng: random.Random) -> Iterator[Mutant]:
    for route, value, described in closed_sections():
        for key in rng.sample(list(value), min(3, len(value))):
            typo = rng.choice([f"{key}s", key[1:], key[:-1], key.upper(), f"{key[:1]}_{key[1:]}", "zebra", "<<"])
            if typo and typo not in described["properties"]:
                yield replaced((*route, typo), value[key], rng)


def missing_keys(rng: random.Random) -> Iterator[Mutant]:
    for route, value, described in closed_sections():
        for key in described.get("required", ()):
            rest = {name: child for name, child in value.items() if name != key}
            yield Mutant(rewritten=(route, json.dumps(rest)), mentions=f"{dotted((*route, key))}: is missing")
    for route in [("dataset",), ("teacher",), ("student",), ("method",), ("student_training", "schedule")]:
        yield replaced(route, {}, rng)


def repeated_keys(rng: random.Random) -> Iterator[Mutant]:
    lines = TEXT.splitlines()
    for index, line in enumerate(lines):
        if re.fullmatch(r" *\w+: [^\[{,}]+", line):
            text = "\n".join([*lines[: index + 1], line, *lines[index + 1 :]])
            yield Mutant(text.encode(), mentions="is written twice, first at ")


def wrong_kinds(rng: random.Random) -> Iterator[Mutant]:
    kinds = ["centerpoint", "bevdet", "nuscenes", "synthetic", "distillbev", "centrepoint", "", "BEVDET", "../x"]
    for section in ("teacher", "dataset", "method"):
        for kind in kinds:
            # Another kind that exists still does not have the keys of this one.
            if kind != BASE[section]["kind"]:
                yield Mutant(overrides=(f"{section}.kind={json.dumps(kind)}",), mentions=section)
    for kind in ("one_cycle", "step", "cosin", "linear"):
        yield Mutant(overrides=(f"student_training.schedule.kind={kind}",), mentions="student_training.schedule")


CONTRADICTIONS = {
    "student_training.epochs=3": "`steps` or `epochs`",
    "student_training.steps=null": "`steps` or `epochs`",
    "teacher_training.micro_batch=3": "micro_batch",
    "student.image_size=[64, 192]": "student.image_size",
    "dataset.images.height=96": "student.image_size",
    "teacher_training=null": "`teacher_training` or `teacher_checkpoint`",
    "seeds=[0]": "`world_seeds`",
    "world_seeds=[1, 2, 3]": "`world_seeds`",
    "seeds=[1, 1]": "seeds: holds 1 twice",
    "dataset={kind: nuscenes}": "`world_seeds`",
    "controls.0.name=losses_alone": "controls: holds the control `losses_alone` twice",
    "controls.0.name=baseline": "`baseline`",
    "controls.1.equal_time=true": "`equal_time`",
    "controls.0.overrides={method.weight: 0}": "`method.weight`",
    "controls.1.overrides={dataset.cache: false}": "`dataset.cache`",
    "controls.1.overrides={method.wieght: 0}": "did you mean `weight`?",
    "controls.1.overrides={method.weight: low}": "method.weight: must be a number",
    "teacher.point_range.0=30": "`point_range`",
    "method.taps.0.name=bev_neck": "bev_neck",
    "method.layers=[nowhere]": "nowhere",
    "dataset.images.resize=[1, 0]": "dataset.images.resize",
    "student.grid.cell=-1": "student.grid",
    "teacher.head.nms=[]": "`nms`",
    "method.taps.7.alpha=1": "`method.taps` is a list of 4",
    "seeds.0.x=1": "`seeds.0` is a single value",
    "teacher": "must read `dotted.key=value`",
    "=3": "must read `dotted.key=value`",
    f"{'a.' * 5000}a=1": "must read `dotted.key=value`",
}


def contradictions(rng: random.Random) -> Iterator[Mutant]:
    for override, mention in CONTRADICTIONS.items():
        yield Mutant(overrides=(override,), mentions=mention)


def truncated(rng: random.Random) -> Iterator[Mutant]:
    # Without its method no recipe is complete, wherever before it the file ends.
    for end in rng.sample(range(TEXT.index("\nmethod:")), 200):
        yield Mutant(TEXT[:end].encode())


HOSTILE_VALUES = [
    "!!python/object/apply:os.mkdir [hacked]",
    "!!python/name:os.system",
    "!!python/object/new:type [x]",
    "!!python/module:os",
    "!!binary aGFja2Vk",
    "!!set {a}",
    "!!float 1",
    "!include /etc/passwd",
    "&anchor 1",
    "*anchor",
    "{<<: *anchor}",
    ".inf",
    "-.inf",
    ".NaN",
    "1e400",
    "-1e999",
    "1" + "0" * 30,
    "9" * 5000,
    "0x" + "f" * 40,
    "[" * 60 + "]" * 60,
    "{a: " * 60 + "1" + "}" * 60,
    "[" * 20_000,
    '"\\ud800"',
    "'",
    '"',
    "[",
    "{",
    "}",
    "@x",
    "`x`",
    "%x",
    "|x",
    "? x",
    "- x",
    "a: b: c",
    "\tx\t: y",
    "\x00",
    "\x07",
    "\x1b[31mred",
]


def hostile_values(rng: random.Random) -> Iterator[Mutant]:
    assert not set("'\"") & set(TEXT)
    lines = TEXT.splitlines()
    places = [index for index, line in enumerate(lines) if re.fullmatch(r" *\w+: [\w.]+", line)]
    for value in HOSTILE_VALUES:
        for index in rng.sample(places, 4):
            key = lines[index].partition(":")[0]
            yield Mutant("\n".join([*lines[:index], f"{key}: {value}", *lines[index + 1 :]]).encode())


def hostile_files(rng: random.Random) -> Iterator[Mutant]:
    laughs = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 30))
    sound = TEXT.encode()
    yield from map(
        Mutant,
        [
            b"",
            b"\n\n\n",
            b"# only a comment\n",
            b"---\n...\n",
            b"null",
            b"3",
            b"a word",
            b"[]",
            b"{}",
            b"- " + MINIMAL.splitlines()[0].encode(),
            b"\xff\xfe" + TEXT.encode("utf-16-le"),
            TEXT.encode("utf-16-be"),
            TEXT.encode("utf-32"),
            sound + b"# caf\xe9\n",
            sound + b"\xc3\x28",
            sound + b"\x00",
            b"\x89PNG\r\n\x1a\n" + sound,
            b"PK\x03\x04" + sound,
            bytes(range(256)),
            sound + b"---\n" + sound,
            sound + sound,
            b"l0: &l0 ha\n" + laughs.encode() + b"\n" + sound,
            sound + b"#" * 1_000_000,
            sound + b"a: " * 50_000,
            b"[" * 200_000,
            b"- " * 50_000,
            b"? " * 50_000,
            b"a:\n" + b"".join(b" " * depth + b"a:\n" for depth in range(1, 400)),
            b"%YAML 3.0\n---\n" + sound,
            b"%TAG ! tag:x\n" + sound,
            sound.replace(b"  ", b"\t"),
            json.dumps(BASE).encode()[:-1],
            b"<recipe/>",
            b"[method]\nkind = 'distillbev'\n",
        ],
    )


INVALID: dict[str, tuple[int, Callable[[random.Random], Iterator[Mutant]]]] = {
    "wrong type": (120, wrong_types),
    "out of range": (80, out_of_range),
    "unknown key": (60, unknown_keys),
    "missing key": (25, missing_keys),
    "repeated key": (25, repeated_keys),
    "wrong kind": (20, wrong_kinds),
    "contradiction": (20, contradictions),
    "truncated": (40, truncated),
    "hostile value": (80, hostile_values),
    "hostile file": (30, hostile_files),
}


def check(file: Path, text: bytes, overrides: tuple[str, ...]) -> int:
    """Exit code of `bevkd config check`."""
    file.write_bytes(text)
    flags = [word for override in overrides for word in ("--set", override)]
    with pytest.raises(SystemExit) as ended:
        main(["config", "check", str(file), *flags])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_there_are_five_hundred() -> None:
    assert sum(count for count, _ in INVALID.values()) == 500


@pytest.mark.parametrize("what", INVALID)
def test_a_wrong_recipe_ends_with_one_clear_message(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    count, generate = INVALID[what]
    rng = random.Random(20260101)
    mutants = rng.sample(sorted(set(generate(rng)), key=repr), count)
    for mutant in mutants:
        code = check(tmp_path / "recipe.yaml", mutant.text(), mutant.overrides)
        out, message = capsys.readouterr()
        lines = message.splitlines()
        assert (code, out) == (2, ""), mutant
        assert "recipe.yaml" in lines[0] or lines[0].startswith("--set "), message
        assert mutant.mentions in message
        assert len(lines) == 1 or re.fullmatch(rf"{tmp_path}/recipe\.yaml: \d+ problems", lines[0])
        assert len(lines) <= 14
        assert all(len(line) < 400 and line.isprintable() for line in lines), message
        assert not re.search(r"Traceback|Error\b|Input should|pydantic|type=|validation error", message), message
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
