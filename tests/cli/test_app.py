import json
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from bevkd.app import app, main
from bevkd_common.config.reading.loading import load_recipe, parse_recipe

Bevkd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bevkd(capsys: pytest.CaptureFixture[str]) -> Bevkd:
    """Runs the command in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


def commands(command: Any, name: str = "bevkd") -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for verb, child in command.commands.items():
            yield from commands(child, f"{name} {verb}")
    else:
        yield name, command


# Every flag is a promise: adding one is a decision, and everything else is `--set`.
FLAGS = {
    "bevkd run": "METHOD --teacher --student --dataset --data-root --recipe --set"
    " --out --seed --seeds --gpus --nodes --jobs --restart --no-baseline --verify-data --plan",
    "bevkd train": "METHOD --arm --teacher --student --dataset --data-root --recipe --set --out --seed --gpus"
    " --nodes",
    "bevkd eval": "RUN|FILE --gpus --submission --data-root --version --split --engine --results",
    "bevkd report": "RUN --gpus",
    "bevkd ablate": "METHOD [ABLATION]... --teacher --student --dataset --data-root --recipe --set"
    " --out --seed --gpus --nodes --jobs --restart --list",
    "bevkd sweep": "METHOD --grid --teacher --student --dataset --data-root --recipe --set --out --seeds --on"
    " --sbatch --gpus --jobs",
    "bevkd recipes ls": "",
    "bevkd recipes show": "NAME",
    "bevkd recipes copy": "NAME DEST",
    "bevkd config check": "RECIPE --set",
    "bevkd config schema": "",
    "bevkd config diff": "A B",
    "bevkd weights ls": "",
    "bevkd weights import": "FILE --as --out --recipe --set --convention --rename --ignore",
    "bevkd data index": "ROOT --version --allow-missing --rebuild",
    "bevkd data check": "ROOT --version --samples --draw",
    "bevkd data virtual-points": "ROOT --version --masks --weights --official --set --out --sweeps --workers",
    "bevkd data synth": "OUT --seed --train-scenes --val-scenes --workers",
    "bevkd plugins": "",
    "bevkd doctor": "--data-root --runs",
}


def test_the_flags_of_every_command_are_decided() -> None:
    surface = {}
    for name, command in commands(typer.main.get_command(app)):
        words = [
            parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
            for parameter in command.params
            if parameter.name != "help"
        ]
        surface[name] = " ".join(words)
    assert surface == FLAGS
    assert FLAGS["bevkd run"].count("--") <= 16


def test_every_command_explains_itself(bevkd: Bevkd) -> None:
    for name in FLAGS:
        code, out, _ = bevkd(*name.split()[1:], "--help")
        assert code == 0
        assert out.startswith(f"Usage: {name} ")
        assert len(out.split("\n\n")[1].strip()) > 20


def test_help_imports_nothing_heavy_and_answers_at_once() -> None:
    code = (
        "import sys\n"
        "from bevkd.app import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'matplotlib', 'numpy', 'pydantic', 'yaml', 'rich', 'PIL', 'accelerate'}\n"
        "    sys.exit(' '.join(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "Usage: " in done.stdout

    # Processor time, which other programs on the machine do not lengthen.
    command = Path(sys.executable).with_name("bevkd")
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([command, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) <= 0.4


def test_config_commands_import_no_torch(stand_in: Path) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(stand_in.parents[1])!r})\n"
        "from bevkd.app import main\n"
        "for arguments in (['recipes', 'ls'], ['plugins'], ['config', 'schema']):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 0\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_user_can_put_right_is_one_message_and_exit_code_2(bevkd: Bevkd, tmp_path: Path) -> None:
    assert bevkd("config", "check", str(tmp_path)) == (2, "", f"{tmp_path}: cannot be read: Is a directory\n")


def test_a_wrong_flag_exits_with_2(bevkd: Bevkd) -> None:
    code, _, err = bevkd("config", "check", "--sett", "a=b")
    assert code == 2
    assert "No such option" in err


def test_an_interrupt_exits_with_130(bevkd: Bevkd, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bevkd_common.config.plugins.installed", interrupted)
    assert bevkd("plugins")[0] == 130


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bevkd_common.config.plugins.installed", broken)
    with pytest.raises(ZeroDivisionError):
        main(["plugins"])


def test_plugins_are_listed_with_their_origin(stand_in: Path, bevkd: Bevkd) -> None:
    code, out, err = bevkd("plugins")
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert ["detector", "lift", "stand-in 1.0", "A camera detector."] in rows
    assert ["data set", "toy", "stand-in 1.0", "A made world."] in rows
    assert ["method", "imitation", "stand-in 1.0", "Nobody, 2020"] in rows


def test_a_broken_plug_in_warns_in_listings(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bevkd: Bevkd
) -> None:
    from bevkd_common.config.plugins import _discovered

    folder = tmp_path / "odd-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[bevkd.methods]\nodd = module_of_odd:SPEC\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _discovered.cache_clear()
    code, out, err = bevkd("plugins")
    assert code == 0
    assert "\timitation\t" in out
    assert err == (
        "warning: the method `odd` cannot be used: odd 1.0 fails with"
        " ModuleNotFoundError: No module named 'module_of_odd'\n"
    )
    code, _, err = bevkd("run", "odd")
    assert code == 2
    assert "No module named 'module_of_odd'" in err


def test_recipes_are_listed_with_the_flags_that_select_them(stand_in: Path, bevkd: Bevkd) -> None:
    code, out, _ = bevkd("recipes", "ls")
    assert code == 0
    row = "pillars-lift.toy\tpillars\tlift\ttoy\tPillars teach a camera detector on a made world\timitation\t"
    assert row in out.splitlines()


def test_a_broken_recipe_warns_in_the_listing(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bevkd: Bevkd
) -> None:
    shutil.copytree(stand_in.parent, tmp_path / "copy")
    (tmp_path / "copy" / "stand_in_pairs" / "broken.yaml").write_text("summary: 3\n")
    monkeypatch.setattr("bevkd_common.config.recipes.files", lambda package: tmp_path / "copy" / package)
    for package in ("bevkd_common.recipes", "distillbev.recipes", "unidistill.recipes"):
        (tmp_path / "copy" / package).mkdir()
    code, out, err = bevkd("recipes", "ls")
    assert code == 0
    assert "pillars-lift.toy\t" in out
    assert "warning: broken cannot be used: " in err


def test_a_recipe_is_shown_with_its_comment_and_every_setting(stand_in: Path, bevkd: Bevkd) -> None:
    code, out, _ = bevkd("recipes", "show", "pillars-lift.toy")
    assert code == 0
    assert out.startswith("# Pillars teach a camera detector.\n#\n#     bevkd run METHOD ")
    assert "  clip_norm: 35.0\n" in out
    assert parse_recipe(out, "shown") == load_recipe(stand_in)


def test_a_recipe_is_copied_once(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bevkd: Bevkd
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bevkd("recipes", "copy", "pillars-lift.toy") == (0, "imitation-pillars-lift.toy.yaml\n", "")
    copied = tmp_path / "imitation-pillars-lift.toy.yaml"
    assert load_recipe(copied) == load_recipe(stand_in)
    assert "# Imitation from pillars to lift.\n" in copied.read_text()
    assert bevkd("recipes", "copy", "pillars-lift.toy") == (
        2,
        "",
        "imitation-pillars-lift.toy.yaml exists already; name another file\n",
    )
    assert bevkd("recipes", "copy", "pillars-lift.toy", "mine.yaml") == (0, "mine.yaml\n", "")
    code, _, err = bevkd("recipes", "copy", "pillars-lift.toy", "none/mine.yaml")
    assert (code, err) == (2, "none/mine.yaml cannot be written: No such file or directory\n")


def test_an_unknown_recipe_is_an_error_with_the_choices(stand_in: Path, bevkd: Bevkd) -> None:
    code, out, err = bevkd("recipes", "show", "pillars-lift.toi")
    assert (code, out) == (2, "")
    assert err.startswith("no pair recipe is called `pillars-lift.toi`; the nearest are `pillars-lift.toy`, ")
    assert "`bevkd recipes ls` lists all " in err


def test_a_recipe_is_checked_by_file_or_name_with_overrides(stand_in: Path, bevkd: Bevkd) -> None:
    summary = "Pillars teach a camera detector on a made world"
    assert bevkd("config", "check", str(stand_in)) == (0, f"{stand_in}: ok: {summary}\n", "")
    assert bevkd("config", "check", "pillars-lift.toy", "--set", "seeds=[3, 4]")[0] == 0
    assert bevkd("config", "check", "pillars-lift.toy", "--set", "seeds=3") == (
        2,
        "",
        "--set seeds=3: seeds: must be a list, not 3\n",
    )


def test_the_schema_is_json(stand_in: Path, bevkd: Bevkd) -> None:
    code, out, _ = bevkd("config", "schema")
    assert code == 0
    assert "lift" in json.loads(out)["properties"]["student"]["discriminator"]["mapping"]


def test_two_recipes_are_compared_key_by_key(stand_in: Path, tmp_path: Path, bevkd: Bevkd) -> None:
    other = tmp_path / "other.yaml"
    text = stand_in.read_text().replace("weight: 2.0", "weight: 3")
    other.write_text(text.replace("image_size", "depth: 2\n  image_size"))
    code, out, _ = bevkd("config", "diff", "pillars-lift.toy", str(other))
    assert code == 0
    assert out.splitlines() == ['student.depth\t"auto"\t2.0', "method.taps.0.weight\t2.0\t3.0"]


def test_a_terminal_gets_a_table(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["plugins"])
    out = capsys.readouterr().out
    assert "summary" in out.splitlines()[1]
    assert "│" in out
    assert "\t" not in out


@pytest.mark.parametrize("width", [1, 20, 60])
def test_a_narrow_terminal_gets_lines_in_which_no_word_is_cut_off(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["recipes", "ls"])
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert len(blocks) >= 21
    assert all(block.splitlines()[0].startswith("recipe: ") for block in blocks)
    assert "recipe: centerpoint-bevdepth-r101.nuscenes\n--teacher: centerpoint\n" in "\n".join(blocks)


@pytest.mark.parametrize(
    "arguments",
    [
        ("config", "check"), ("eval",), ("report",), ("data", "check"), ("data", "index"), ("run", "--recipe"),
        ("run", "distillbev", "--teacher", "mvp", "--student", "bevformer", "--out"),
    ],
)  # fmt: skip
def test_a_path_that_is_too_long_is_one_sentence(bevkd: Bevkd, arguments: tuple[str, ...]) -> None:
    code, _, err = bevkd(*arguments, "a" * 300)
    assert code == 2
    assert err.count("\n") == 1
    assert len(err) < 200
    assert "aaa..." in err
