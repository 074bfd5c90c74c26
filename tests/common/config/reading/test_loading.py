from pathlib import Path

import pytest
from bevkd_common.config.reading.loading import (
    Change,
    diff,
    dump,
    load_recipe,
    override,
    parse_recipe,
    resolved,
    schema,
)
from bevkd_common.config.reading.yaml_tree import MAX_CHARACTERS
from bevkd_common.errors import UserError


def message(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def changed(recipe: Path, old: str, new: str) -> str:
    """The message about the recipe in which `old` reads `new`."""
    text = recipe.read_text()
    assert text.count(old) == 1
    with pytest.raises(UserError) as caught:
        parse_recipe(text.replace(old, new), "r.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "weight_decay: 0.01",
            "weight_decy: 0.01",
            "r.yaml, line 26: student_training.optimizer.weight_decy: unknown key; did you mean `weight_decay`?",
        ),
        ("cell: 0.4", "zebra: 0.4", "r.yaml, line 14: teacher.zebra: unknown key"),
        (
            "steps: 600",
            "steps: '600'",
            "student_training.steps: must be a whole number, not '600'",
        ),
        (
            "steps: 600",
            "steps: 600.0",
            "student_training.steps: must be a whole number, not 600.0",
        ),
        ("steps: 600", "steps: true", "r.yaml, line 24: student_training.steps: must be a whole number, not true"),
        ("steps: 600", "steps: -1", "r.yaml, line 24: student_training.steps: must be greater than 0, not -1"),
        ("cell: 0.4", "cell: wide", "r.yaml, line 14: teacher.cell: must be a number, not 'wide'"),
        ("cell: 0.4", "cell: {a: 1}", "r.yaml, line 14: teacher.cell: must be a number, not a section"),
        ("[64, 176]", "[64]", "r.yaml, line 22: student.image_size.1: is missing"),
        ("[64, 176]", "[64, 1, 2]", "r.yaml, line 22: student.image_size: must have at most 2 items, not 3"),
        ("[64, 176]", "64", "r.yaml, line 22: student.image_size: must be a list, not 64"),
        ("[64, 176]", "[64, 177]", "r.yaml, line 22: student.image_size: must be the size of the data's images"),
        ("kind: lift", "kind: pilars", "r.yaml, line 21: student.kind: no detector `pilars` is installed, only "),
        ("  kind: lift\n", "", "r.yaml, line 20: student: needs the key `kind`, "),
        (
            "kind: cosine",
            "kind: cosin",
            "r.yaml, line 27: student_training.schedule.kind: must be `cosine`, `one_cycle` or `step`, not `cosin`;"
            " did you mean `cosine`?",
        ),
        ("kind: cosine, ", "", "r.yaml, line 27: student_training.schedule: needs the key `kind`"),
        ("weight: 2.0", "wieght: 2", "r.yaml, line 31: method.taps.0.wieght: unknown key; did you mean `weight`?"),
        ("inherit_head: false", "x: 1", "r.yaml, line 37: controls.2.overrides: method.x: unknown key"),
        ("steps_factor: 2", "steps_factor: 0", "r.yaml, line 35: controls.0.steps_factor: must be greater than 0"),
        ("seeds: [0, 1]\nw", "w", "r.yaml: give one of `world_seeds` for each of the 1 `seeds`"),
        ("method:", "methods:", "r.yaml: method: is missing"),
    ],
)
def test_a_mistake_is_named_with_line_key_and_reason(stand_in: Path, old: str, new: str, expected: str) -> None:
    text = changed(stand_in, old, new)
    assert expected in text
    assert len(text.splitlines()) == (3 if new == "methods:" else 1)


def test_all_mistakes_are_told_at_once(stand_in: Path) -> None:
    text = changed(
        stand_in, "  cell: 0.4\n  x_range: [-25.6, 25.6]\n", "  cel: 0.4\n  x_range: [a, 1]\n  channels: 3\n"
    )
    assert text.splitlines() == [
        "r.yaml: 3 problems",
        "  r.yaml, line 14: teacher.cel: unknown key; did you mean `cell`?",
        "  r.yaml, line 15: teacher.x_range.0: must be a number, not 'a'",
        "  r.yaml, line 16: teacher.channels: must be a list, not 3",
    ]


def test_a_long_list_of_mistakes_is_cut(stand_in: Path) -> None:
    unknown = "".join(f"extra{i}: 1\n" for i in range(30))
    lines = changed(stand_in, "seeds: [0, 1]\nw", f"{unknown}seeds: [0, 1]\nw").splitlines()
    assert (lines[0], len(lines), lines[-1]) == ("r.yaml: 30 problems", 14, "  and 18 more")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x", "must be a number or be 'auto', not 'x'"),
        ("-1", "must be greater than 0 or be 'auto', not -1"),
        ("[1]", "must be a number or be 'auto', not a list"),
        ("{a: 1}", "must be a number or be 'auto', not a section"),
        ("null", "must be a number or be 'auto', not null"),
        ("true", "must be a number or be 'auto', not true"),
        ("0", "must be greater than 0 or be 'auto', not 0"),
    ],
)
def test_the_members_of_a_union_speak_with_one_voice(stand_in: Path, value: str, reason: str) -> None:
    assert message(stand_in, f"student.depth={value}") == f"--set student.depth={value}: student.depth: {reason}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty; a recipe is a section of keys"),
        (b"# nothing\n", "is empty; a recipe is a section of keys"),
        (b"- a\n", "is a list; a recipe is a section of keys"),
        (b"hello\n", "is a single value; a recipe is a section of keys"),
        (b"a: \xff\n", "is not UTF-8 text: byte 3 is 0xff"),
        (b"PK\x03\x04", "is not text: it holds the character #x0003"),
        (b"#" * (MAX_CHARACTERS + 1), f"is larger than {MAX_CHARACTERS} characters, which no recipe is"),
    ],
)
def test_a_file_that_is_no_recipe(stand_in: Path, tmp_path: Path, data: bytes, reason: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(data)
    assert message(file) == f"{file}: {reason}"


def test_numbers_that_no_check_can_compute_with_are_told_apart_from_a_crash(stand_in: Path) -> None:
    text = message(stand_in, "teacher.cell=1e-300", "teacher.x_range=[-1e300, 1e300]")
    assert text == f"{stand_in}: its numbers cannot be computed with: cannot convert float infinity to integer"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert message(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    assert message(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_byte_order_mark_is_no_part_of_the_text(stand_in: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + stand_in.read_bytes())
    assert load_recipe(file) == load_recipe(stand_in)


def test_overrides_set_values_items_and_absent_sections(stand_in: Path) -> None:
    recipe = load_recipe(
        stand_in,
        [
            "student_training.optimizer.lr=1e-2",
            "method.taps.1.weight=5",
            "teacher_training.ema.decay=0.9",
            "seeds=[4, 5]",
            "student_training.optimizer.lr=1e-4",
        ],
    )
    data = resolved(recipe)
    assert data["student_training"]["optimizer"]["lr"] == 1e-4
    assert [tap["weight"] for tap in data["method"]["taps"]] == [2.0, 5.0]
    assert data["teacher_training"]["ema"]["decay"] == 0.9
    assert recipe.seeds == (4, 5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.dept=1", "--set student.dept=1: student.dept: unknown key; did you mean `depth`?"),
        ("student_training.lr.x=1", "--set student_training.lr.x=1: student_training.lr: unknown key"),
        (
            "method.taps.2.weight=1",
            "--set method.taps.2.weight=1: method.taps.2.weight:"
            " `method.taps` is a list of 2, counted from 0; it has no item `2`",
        ),
        (
            "method.taps.one=1",
            "--set method.taps.one=1: method.taps.one:"
            " `method.taps` is a list of 2, counted from 0; it has no item `one`",
        ),
        (
            "teacher.channels.0=1",
            "--set teacher.channels.0=1: teacher.channels.0:"
            " `teacher.channels` is not in the file, so it has no item `0`; set the whole list",
        ),
        (
            "teacher.cell.x=1",
            "--set teacher.cell.x=1: teacher.cell.x: `teacher.cell` is a single value; it has no key `x`",
        ),
        ("teacher.cell", "--set teacher.cell: must read `dotted.key=value`"),
        ("=1", "--set =1: must read `dotted.key=value`"),
        ("a..b=1", "--set a..b=1: must read `dotted.key=value`"),
        (
            "teacher.cell=[1",
            "--set teacher.cell=[1: is not valid YAML: expected ',' or ']', but got '<stream end>'",
        ),
        ("teacher.cell=.nan", "--set teacher.cell=.nan: .nan is not a finite number"),
        (f"{'a.' * 50}a=1", f"--set {'a.' * 28}a...: must read `dotted.key=value`"),
    ],
)
def test_an_override_that_leads_nowhere(stand_in: Path, override: str, expected: str) -> None:
    assert message(stand_in, override).startswith(expected)


def test_a_dump_is_complete_and_reads_back(stand_in: Path) -> None:
    recipe = load_recipe(stand_in)
    text = dump(recipe)
    assert parse_recipe(text, "dump") == recipe
    assert "  channels: [32, 64]\n" in text
    assert "  clip_norm: 35.0\n" in text


def test_override_gives_another_recipe_and_leaves_the_first(stand_in: Path) -> None:
    recipe = load_recipe(stand_in)
    other = override(recipe, {"method.taps.1.weight": 3, "method.inherit_head": False}, "ablation x")
    assert diff(recipe, other) == [
        Change("method.taps.1.weight", 1.0, 3.0),
        Change("method.inherit_head", True, False),
    ]
    assert recipe == load_recipe(stand_in)


def test_override_names_where_a_wrong_value_comes_from(stand_in: Path) -> None:
    recipe = load_recipe(stand_in)
    with pytest.raises(UserError, match=r"^ablation x: method\.inherit_head: must be true or false, not 'no'$"):
        override(recipe, {"method.inherit_head": "no"}, "ablation x")
    with pytest.raises(UserError, match=r"^ablation x: student\.image_size: must be the size of the data"):
        override(recipe, {"student.image_size": [8, 8]}, "ablation x")


def test_a_difference_names_the_deepest_key(stand_in: Path) -> None:
    recipe = load_recipe(stand_in)
    other = load_recipe(
        stand_in,
        [
            "teacher={kind: lift, depth: 2}",
            "method.taps=[{teacher: head, student: bev_neck, weight: 2}]",
            "seeds=[1, 0]",
            "summary=other",
        ],
    )
    assert diff(recipe, recipe) == []
    assert diff(recipe, other) == [
        Change("summary", "Pillars teach a camera detector on a made world", "other"),
        Change("seeds", [0, 1], [1, 0]),
        Change("teacher.kind", "pillars", "lift"),
        Change("teacher.cell", 0.4, None),
        Change("teacher.channels", [32, 64], None),
        Change("teacher.x_range", [-25.6, 25.6], None),
        Change("teacher.image_size", None, [64, 176]),
        Change("teacher.depth", None, 2.0),
        Change("method.taps.0.teacher", "bev_neck", "head"),
        Change("method.taps.1", {"teacher": "bev_block0", "student": "bev_block0", "weight": 1.0}, None),
    ]


def test_the_schema_describes_every_installed_kind(stand_in: Path) -> None:
    described = schema()
    assert described["additionalProperties"] is False
    kinds = described["properties"]["student"]["discriminator"]["mapping"]
    assert {"pillars", "lift"} <= set(kinds)
    assert set(described["required"]) >= {"summary", "selects", "dataset", "teacher", "student", "method"}


@pytest.mark.parametrize(
    "key", ["seeds.{}", "method.taps.{}.weight", "student.{}", "{}.a", "student_training.{}.b"]
)
def test_a_key_of_thousands_of_digits_is_one_short_sentence(stand_in: Path, key: str) -> None:
    for long in ("9" * 5_000, "x" * 1_000_000):
        text = message(stand_in, f"{key.format(long)}=1")
        assert text.startswith("--set ")
        assert len(text) < 600
        assert "\n" not in text
