import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from bevkd_common.config.methods import ablations, departures, kinds_of, published_ablations, title
from bevkd_common.config.plugins import _discovered
from bevkd_common.config.reading.loading import load_recipe, parse_recipe, schema
from bevkd_common.config.recipe import Recipe
from bevkd_common.config.recipes import Catalogue, Choice, catalogue, choose, load_named, method_kinds, path_of
from bevkd_common.config.stack import StackConfig
from bevkd_common.errors import UserError


@pytest.fixture
def shelf(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """Beside the stand-in: two methods, pair recipes of a second package, and what is broken.

    `copying` has a section for the stand-in's pair and one for no pair; `bare` names a package that is missing, and
    `blank` has no sections and a key without a default.
    """
    pairs, sections = tmp_path / "more_pairs", tmp_path / "copying_recipes"
    pairs.mkdir()
    shutil.copytree(stand_in.parent / "stand_in_recipes", sections)
    text = (stand_in.parent / "stand_in_pairs" / stand_in.name).read_text()
    (pairs / "pillars-lift.small_toy.yaml").write_text(text.replace("dataset: toy}", "dataset: small_toy}"))
    recorded = text.replace("dataset: toy}", "dataset: recorded}").replace("student: lift,", "student: big_lift,")
    recorded = recorded.replace("world_seeds: [100, 101]\n", "").replace(
        "  kind: toy\n  cameras: {height: 64, width: 176}\n", "  kind: recorded\n"
    )
    (pairs / "pillars-big_lift.recorded.yaml").write_text(recorded)
    (pairs / "broken.yaml").write_text("summary: x\nselects: {teacher: a, student: b}\n")
    (pairs / "README.md").write_text("no recipe")
    section = sections / stand_in.name
    section.write_text(section.read_text().replace("imitation", "copying"))
    (sections / "pillars-lift.nowhere.yaml").write_text("method: {kind: copying}\n")
    (tmp_path / "copying.py").write_text(
        "from dataclasses import replace\n"
        "from typing import Literal\n"
        "import stand_in\n"
        "from bevkd_common.config.plugins import Ablation\n"
        "from bevkd_common.config.published_rows import PaperRow\n"
        "class CopyingConfig(stand_in.ImitationConfig):\n"
        "    kind: Literal['copying'] = 'copying'\n"
        "class BlankConfig(stand_in.ImitationConfig):\n"
        "    kind: Literal['blank'] = 'blank'\n"
        "    strength: float\n"
        "SPEC = replace(stand_in.IMITATION, kind='copying', config=CopyingConfig, recipes='copying_recipes',\n"
        "    title='Copying', departures='copying:departures', published_ablations='copying:rows',\n"
        "    ablations={'headless': Ablation('No head.', {'inherit_head': False})})\n"
        "BARE = replace(stand_in.IMITATION, kind='bare', recipes='nowhere_recipes')\n"
        "BLANK = replace(stand_in.IMITATION, kind='blank', config=BlankConfig, recipes=None)\n"
        "def departures(config, student):\n"
        "    return [f'It copies {len(config.taps)} maps for {student.kind}.']\n"
        "def rows():\n"
        "    return {'headless': PaperRow('no head', 'toy val', {'mAP': 12.5}, 'table 2')}\n"
    )
    folder = tmp_path / "copying-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: copying\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[bevkd.methods]\ncopying = copying:SPEC\nbare = copying:BARE\nblank = copying:BLANK\n"
        "[bevkd.recipes]\nmore = more_pairs\ngone = gone_pairs\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("copying", "copying_recipes", "more_pairs"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    _discovered.cache_clear()
    StackConfig.model_rebuild(force=True)
    Recipe.model_rebuild(force=True)
    return catalogue()


def test_the_catalogue_holds_pairs_with_the_methods_that_have_a_section(shelf: Catalogue) -> None:
    sections = {pair.name: list(pair.sections) for pair in shelf.pairs if "lift" in pair.name}
    assert sections == {
        "pillars-big_lift.recorded": [],
        "pillars-lift.small_toy": [],
        "pillars-lift.toy": ["copying", "imitation"],
    }
    for owner, package in (("bare", "nowhere_recipes"), ("gone_pairs", "gone_pairs")):
        why = f"ModuleNotFoundError: No module named '{package}'"
        assert shelf.broken[owner] == f"its package of recipes cannot be read: {why}"
    assert shelf.broken["broken"].endswith("broken.yaml, line 2: selects.dataset: is missing")
    assert shelf.broken["copying/pillars-lift.nowhere"] == "no pair recipe is called `pillars-lift.nowhere`"


def test_two_packages_with_a_pair_of_the_same_name_are_broken(
    shelf: Catalogue, stand_in: Path, tmp_path: Path
) -> None:
    shutil.copy(stand_in.parent / "stand_in_pairs" / stand_in.name, tmp_path / "more_pairs")
    found = catalogue()
    assert found.broken[stand_in.stem] == "more_pairs and stand_in_pairs both bring it; uninstall one of them"
    with pytest.raises(UserError, match=r"the pair recipe `pillars-lift\.toy` cannot be used: more_pairs and "):
        found.named(stand_in.stem)


def test_pair_and_section_compose_to_the_complete_recipe(stand_in: Path) -> None:
    complete = load_recipe(stand_in)
    choice = choose("imitation/pillars-lift.toy")
    assert choice.load() == complete
    assert parse_recipe(choice.text(), "copied") == complete
    assert choice.load(["method.taps.0.weight=3"]).method.model_dump()["taps"][0]["weight"] == 3.0
    assert choice.header.splitlines() == [
        "# Pillars teach a camera detector.",
        "#",
        "#     bevkd run METHOD --teacher pillars --student lift",
        "# Imitation from pillars to lift.",
    ]


def test_the_copied_text_keeps_comments_and_is_complete(stand_in: Path) -> None:
    text = choose("imitation/pillars-lift.toy").text()
    assert text.startswith("# Pillars teach a camera detector.\n#\n")
    assert (
        "\n# Imitation from pillars to lift.\nmethod:\n  kind: imitation\n  taps:\n    - {teacher: bev_neck,"
        in text
    )
    assert text.count("controls:") == 1


def test_a_pair_in_another_style_is_written_out_anew(shelf: Catalogue, tmp_path: Path) -> None:
    file = tmp_path / "more_pairs" / "pillars-lift.small_toy.yaml"
    data = yaml.safe_load(file.read_text().replace("3e-3", "0.003"))
    file.write_text(f"# In one line.\n{json.dumps(data)}\n")
    choice = choose("imitation/pillars-lift.small_toy")
    assert choice.text().startswith("# In one line.\nsummary: ")
    assert parse_recipe(choice.text(), "copied") == choice.load()


def test_a_method_without_a_section_has_its_defaults(shelf: Catalogue) -> None:
    choice = choose("imitation/pillars-lift.small_toy")
    recipe = choice.load()
    assert recipe.method.model_dump() == {
        "kind": "imitation",
        "taps": ({"teacher": "bev_neck", "student": "bev_neck", "weight": 1.0},),
        "inherit_head": True,
    }
    assert [control.name for control in recipe.controls] == ["twice_the_steps", "as_long"]
    assert parse_recipe(choice.text(), "copied") == recipe
    assert "# imitation with its defaults.\nmethod:\n  kind: imitation\n  taps:\n" in choice.text()


def test_a_method_without_defaults_says_which_key_is_missing(shelf: Catalogue) -> None:
    with pytest.raises(UserError) as caught:
        choose("blank/pillars-lift.toy").load()
    assert str(caught.value) == (
        "the defaults of blank, which has no section for pillars-lift.toy: method.strength: is missing"
    )
    assert choose("blank/pillars-lift.toy").load(["method.strength=2"]).method.model_dump()["strength"] == 2.0


def test_a_stack_holds_the_sections_and_controls_of_its_parts(shelf: Catalogue) -> None:
    choice = Choice(method_kinds("imitation+copying"), shelf.named("pillars-lift.toy"))
    recipe = choice.load()
    assert (choice.name, kinds_of(recipe.method)) == (
        "imitation+copying/pillars-lift.toy",
        ("imitation", "copying"),
    )
    assert title(recipe.method) == "Imitation + Copying"
    assert [part["kind"] for part in recipe.method.model_dump()["parts"]] == ["imitation", "copying"]
    controls = {control.name: control.overrides for control in recipe.controls}
    assert controls == {
        "twice_the_steps": {},
        "as_long": {},
        "imitation_losses_alone": {"method.parts.0.inherit_head": False},
        "copying_losses_alone": {"method.parts.1.inherit_head": False},
    }
    assert parse_recipe(choice.text(), "copied") == recipe
    changed = choice.load(["method.parts.1.taps.0.weight=5"]).method.model_dump()
    assert changed["parts"][1]["taps"][0]["weight"] == 5.0


def test_what_a_stack_has_of_its_parts(shelf: Catalogue) -> None:
    kinds = ("imitation", "copying")
    recipe = Choice(kinds, shelf.named("pillars-lift.toy")).load()
    assert {name: row.overrides for name, row in ablations(kinds).items()} == {
        "copying_headless": {"parts.1.inherit_head": False}
    }
    assert list(ablations(("copying",))) == ["headless"]
    assert {name: row.metrics for name, row in published_ablations(kinds).items()} == {
        "copying_headless": {"mAP": 12.5}
    }
    assert departures(recipe.method, recipe.student) == ["Copying: It copies 2 maps for lift."]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("imitation+imitation", "`imitation+imitation` names the method `imitation` twice"),
        ("imitation+imitaton", "no method `imitaton` is installed, only "),
    ],
)
def test_methods_that_are_no_stack(stand_in: Path, method: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        method_kinds(method)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ("[{kind: imitation}, {kind: imitation}]", "method.parts: holds the method `imitation` twice"),
        ("[{kind: imitation}]", "method.parts: "),
        ("[{kind: imitation}, {kind: stack}]", "method.parts.1.kind: must be "),
    ],
)
def test_parts_that_are_no_stack(stand_in: Path, parts: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason.replace(".", r"\.").replace("[", r"\[")):
        load_recipe(stand_in, [f"method={{kind: stack, parts: {parts}}}", "controls=[]"])


SECTION = "method: {kind: imitation}\n"


@pytest.mark.parametrize(
    ("section", "problems"),
    [
        ("method: {kind: lift}\n", ["line 1: method: must be a section of kind `imitation`"]),
        ("controls: []\n", ["method: must be a section of kind `imitation`"]),
        (
            SECTION + "control: []\nstudent: {kind: lift}\n",
            [
                "line 2: control: unknown key, only `changes`, `controls` or `method`; did you mean `controls`?",
                "line 3: student: unknown key, only `changes`, `controls` or `method`",
            ],
        ),
        (
            SECTION + "controls: [{name: a, base: baseline}]\n",
            ["line 2: controls.0.base: must be `distilled` in a method's section"],
        ),
        (SECTION + "controls: 3\n", ["line 2: controls: must be a list"]),
        (SECTION + "changes: [1]\n", ["line 2: changes: must be a section of dotted keys"]),
        (SECTION + "changes: {method.taps: 3}\n", ["line 2: changes.method.taps: a method cannot change `method`"]),
        (SECTION + "changes: {student.dept: 3}\n", ["line 2: student.dept: unknown key; did you mean `depth`?"]),
        (SECTION + "changes: {student.depth: x}\n", ["line 2: student.depth: must be "]),
        (
            "method: {kind: imitation, tap: 3}\n",
            ["line 1: method.tap: unknown key; did you mean `taps`?"],
        ),
        ("3\n", [": is a single value; a recipe is a section of keys"]),
    ],
)
def test_a_faulty_section_is_reported_in_its_own_file(
    shelf: Catalogue, tmp_path: Path, section: str, problems: list[str]
) -> None:
    file = tmp_path / "imitation.yaml"
    file.write_text(section)
    pair = shelf.named("pillars-lift.toy")
    with pytest.raises(UserError) as caught:
        Choice(("imitation",), replace(pair, sections={"imitation": file})).load()
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert len(lines) == (1 if len(problems) == 1 else len(problems) + 1)
    for line, problem in zip(lines[-len(problems) :], problems, strict=True):
        assert line.startswith(str(file))
        assert problem in line


def test_a_method_changes_other_keys_of_the_pair(shelf: Catalogue, tmp_path: Path) -> None:
    pair = shelf.named("pillars-lift.toy")
    file = tmp_path / "imitation.yaml"
    file.write_text(SECTION + "changes:\n  student.depth: 2.5\n  evaluation.bootstrap: 7\n  teacher_cache: true\n")
    choice = Choice(("imitation",), replace(pair, sections={"imitation": file}))
    recipe = choice.load()
    assert recipe.student.model_dump()["depth"] == 2.5
    assert (recipe.evaluation.bootstrap, recipe.evaluation.batch, recipe.teacher_cache) == (7, 4, True)
    assert choice.load(["student.depth=3"]).student.model_dump()["depth"] == 3.0
    assert parse_recipe(choice.text(), "copied") == recipe


def test_methods_that_change_a_key_in_different_ways_cannot_be_stacked(shelf: Catalogue, tmp_path: Path) -> None:
    pair = shelf.named("pillars-lift.toy")
    files = {}
    for kind, depth in (("imitation", 2.5), ("copying", 3.5)):
        files[kind] = tmp_path / f"{kind}.yaml"
        files[kind].write_text(f"method: {{kind: {kind}}}\nchanges: {{student.depth: {depth}}}\n")
    choice = Choice(("imitation", "copying"), replace(pair, sections=files))
    with pytest.raises(UserError) as caught:
        choice.load()
    assert str(caught.value) == (
        f"{files['copying']}, line 2: changes.student.depth: the methods change `student.depth` in different ways,"
        f" first at {files['imitation']}, line 2"
    )
    files["copying"].write_text("method: {kind: copying}\nchanges: {student.depth: 2.5}\n")
    assert choice.load().student.model_dump()["depth"] == 2.5


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("evaluation:", "method: {kind: imitation}\nevaluation:", "method: a pair recipe has no method"),
        (
            "name: as_long, base: baseline",
            "name: x, base: distilled",
            "controls.1.base: must be `baseline` in a pair",
        ),
    ],
)
def test_a_pair_recipe_holds_nothing_of_a_method(
    shelf: Catalogue, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    file = tmp_path / "more_pairs" / "pillars-lift.small_toy.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=reason.replace(".", r"\.")):
        choose("imitation/pillars-lift.small_toy").load()


@pytest.mark.parametrize(
    ("name", "method", "reason"),
    [
        (
            "pillars-lift.toy",
            None,
            "`pillars-lift.toy` is a pair recipe: name it with a method, such as copying/pillars-lift.toy,"
            " imitation/pillars-lift.toy",
        ),
        (
            "pillars-lift.small_toy",
            None,
            "`pillars-lift.small_toy` is a pair recipe: name it with a method, such as METHOD/pillars-lift.",
        ),
        (
            "imitation/pillars-lift.toy",
            "copying",
            "imitation/pillars-lift.toy is a recipe of imitation, not of copying: name the pair alone, pillars-",
        ),
        (
            "imitation/pillar-lift.toy",
            None,
            "no pair recipe is called `pillar-lift.toy`; the nearest are `pillars-lift.t",
        ),
        ("broken", None, "the pair recipe `broken` cannot be used: "),
        ("imitaton/pillars-lift.toy", None, "no method `imitaton` is installed"),
    ],
)
def test_a_name_that_gives_no_recipe(shelf: Catalogue, name: str, method: str | None, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        choose(name, method)
    assert str(caught.value).startswith(reason)


def test_a_method_of_the_command_line_completes_a_name(shelf: Catalogue) -> None:
    assert choose("pillars-lift.toy", "copying").name == "copying/pillars-lift.toy"
    assert choose("pillars-lift.toy", "copying+imitation").name == "copying+imitation/pillars-lift.toy"


def test_the_nearest_three_names_are_suggested(shelf: Catalogue) -> None:
    with pytest.raises(UserError) as caught:
        shelf.named("pillars-lift.smalltoy")
    assert str(caught.value) == (
        "no pair recipe is called `pillars-lift.smalltoy`; the nearest are `pillars-lift.small_toy`,"
        f" `pillars-lift.toy`, `pillars-big_lift.recorded`; `bevkd recipes ls` lists all {len(shelf.pairs)}"
    )


def test_an_empty_catalogue_says_so() -> None:
    with pytest.raises(UserError, match=r"^no pair recipe is called `x`; none is installed$"):
        Catalogue((), {}).named("x")


def test_flags_find_the_one_pair_that_fits(shelf: Catalogue) -> None:
    assert shelf.find(teacher="pillars", student="lift", dataset="small_toy").name == "pillars-lift.small_toy"
    assert shelf.find(student="big_lift", dataset="recorded").name == "pillars-big_lift.recorded"


def test_without_a_data_set_the_pair_whose_data_can_be_made_is_found(stand_in: Path) -> None:
    assert catalogue().find(teacher="pillars", student="lift").name == "pillars-lift.toy"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            {"teacher": "pilars", "student": "lift", "dataset": "toy"},
            "no pair recipe fits --teacher pilars --student lift --dataset toy; the nearest are"
            " `--teacher pillars --student lift --dataset toy`,"
            " `--teacher pillars --student lift --dataset small_toy`, `--teacher ",
        ),
        (
            {"teacher": "pillars", "student": "lift"},
            "2 pair recipes fit --teacher pillars --student lift: add --dataset; `bevkd recipes ls` lists them",
        ),
        (
            {"teacher": "pillars", "student": "big_lift"},
            "no pair recipe that fits --teacher pillars --student big_lift has data that can be made: add"
            " `--dataset recorded`",
        ),
    ],
)
def test_flags_that_find_no_single_pair(shelf: Catalogue, flags: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        shelf.find(**flags)
    assert str(caught.value).startswith(reason)


def test_a_reference_is_a_path_or_a_name(stand_in: Path, tmp_path: Path) -> None:
    assert path_of(str(stand_in)) == stand_in
    assert path_of(str(tmp_path / "none.yaml")) == tmp_path / "none.yaml"
    assert path_of("imitation/pillars-lift.toy") is None
    assert load_named(str(stand_in)) == load_named("imitation/pillars-lift.toy") == load_named("pillars-lift.toy")


def test_the_head_is_read_without_the_rest(shelf: Catalogue, tmp_path: Path) -> None:
    file = tmp_path / "more_pairs" / "pillars-lift.small_toy.yaml"
    file.write_text(file.read_text() + "\nfaulty: [\n")
    assert catalogue().named("pillars-lift.small_toy").head.selects.dataset == "small_toy"
    with pytest.raises(UserError, match="is not valid YAML"):
        choose("imitation/pillars-lift.small_toy").load()


def test_every_field_of_a_recipe_is_described() -> None:
    """But for some of the data sets' own fields."""
    written = schema()
    parts = {"Recipe": written, **written["$defs"]}
    of_data = {"ColorDistortionConfig", "NuScenesConfig", "SyntheticConfig", "WorldConfig", "ObjectCounts"}
    fields = {
        f"{name}.{key}": field.get("description")
        for name, part in parts.items()
        for key, field in part.get("properties", {}).items()
        if name not in of_data
    }
    assert len(fields) >= 330
    assert [key for key, description in fields.items() if not description] == []
    assert fields["Grid.cell"] == "edge of a cell."
    assert fields["StackConfig.kind"] == "A stack of methods, whose losses are added."
