import shutil
import sys
from pathlib import Path

import pytest
from bevkd_common.config.plugins import _discovered
from bevkd_common.config.recipes import Catalogue, catalogue, header, recipe_path
from bevkd_common.errors import UserError


@pytest.fixture
def shelf(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """Two methods: `imitation`, and `copying` with a recipe of the same name, a second and a broken one."""
    recipes = tmp_path / "copying_recipes"
    recipes.mkdir()
    shutil.copy(stand_in, recipes)
    other = stand_in.read_text().replace("dataset: toy}", "dataset: small_toy}")
    (recipes / "pillars-lift.small_toy.yaml").write_text(other)
    (recipes / "broken.yaml").write_text("summary: x\n")
    (recipes / "README.md").write_text("no recipe")
    (tmp_path / "copying.py").write_text(
        "from dataclasses import replace\n"
        "import stand_in\n"
        "class CopyingConfig(stand_in.ImitationConfig):\n"
        "    kind: str = 'copying'\n"
        "SPEC = replace(stand_in.IMITATION, kind='copying', config=CopyingConfig, recipes='copying_recipes')\n"
        "BARE = replace(stand_in.IMITATION, kind='bare', config=CopyingConfig, recipes='nowhere_recipes')\n"
    )
    folder = tmp_path / "copying-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: copying\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[bevkd.methods]\ncopying = copying:SPEC\nbare = copying:BARE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("copying", "copying_recipes"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    _discovered.cache_clear()
    return catalogue()


def test_the_catalogue_holds_sound_recipes_beside_broken_ones(shelf: Catalogue) -> None:
    names = [file.name for file in shelf.files]
    assert [name for name in names if name.startswith(("copying/", "imitation/"))] == [
        "copying/pillars-lift.small_toy",
        "copying/pillars-lift.toy",
        "imitation/pillars-lift.toy",
    ]
    assert shelf.broken["bare"] == "its package of recipes is missing: No module named 'nowhere_recipes'"
    assert "selects: is missing" in shelf.broken["copying/broken"]


def test_a_name_without_its_method_is_enough_where_it_is_unique(shelf: Catalogue) -> None:
    assert shelf.named("pillars-lift.small_toy").method == "copying"
    assert shelf.named("imitation/pillars-lift.toy").method == "imitation"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "pillars-lift.toy",
            "several recipes are called `pillars-lift.toy`; choose `copying/pillars-lift.toy` or `imitation/",
        ),
        ("pillar-lift.toy", "no recipe is called `pillar-lift.toy`; there is "),
        ("copying/broken", "the recipe `copying/broken` cannot be used: "),
        ("broken", "the recipe `copying/broken` cannot be used: "),
        ("bare", "the recipe `bare` cannot be used: its package of recipes is missing"),
    ],
)
def test_a_name_that_gives_no_recipe(shelf: Catalogue, name: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        shelf.named(name)
    assert str(caught.value).startswith(reason)


def test_an_empty_catalogue_says_so() -> None:
    with pytest.raises(UserError, match=r"^no recipe is called `x`; there is nothing$"):
        Catalogue((), {}).named("x")


def test_the_nearest_name_is_suggested(shelf: Catalogue) -> None:
    with pytest.raises(UserError, match=r"did you mean `pillars-lift\.small_toy`\?$"):
        shelf.named("pillars-lift.smalltoy")


def test_flags_find_the_one_recipe_that_fits(shelf: Catalogue) -> None:
    assert shelf.find("imitation").name == "imitation/pillars-lift.toy"
    found = shelf.find("copying", teacher="pillars", student="lift", dataset="small_toy")
    assert found.name == "copying/pillars-lift.small_toy"


@pytest.mark.parametrize(
    ("method", "flags", "reason"),
    [
        (
            "copying",
            {"teacher": "mvp", "student": "lift"},
            "no recipe of `copying` fits --teacher mvp --student lift; choose from:"
            " --teacher pillars --student lift --dataset small_toy;"
            " --teacher pillars --student lift --dataset toy (copying/broken is broken)",
        ),
        ("copying", {}, "more than one recipe of `copying` fits no flags; choose from: --teacher pillars "),
        ("bare", {}, "no recipe of `bare` fits no flags; choose from: nothing (bare is broken)"),
        ("imitaton", {}, "no method `imitaton` is installed, only "),
    ],
)
def test_flags_that_find_no_single_recipe(
    shelf: Catalogue, method: str, flags: dict[str, str], reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        shelf.find(method, **flags)
    assert str(caught.value).startswith(reason)


def test_a_reference_is_a_path_or_a_name(stand_in: Path, tmp_path: Path) -> None:
    assert recipe_path(str(stand_in)) == stand_in
    assert recipe_path(str(tmp_path / "none.yaml")) == tmp_path / "none.yaml"
    assert recipe_path("imitation/pillars-lift.toy").name == stand_in.name


def test_the_header_is_the_leading_comment() -> None:
    assert header("# a\n#\n# b\n\nsummary: x\n# c\n") == "# a\n#\n# b"
