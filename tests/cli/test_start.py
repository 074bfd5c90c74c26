"""The command under conditions that its caller sets: streams, locale, home, signals; each in its own process."""

import os
import signal
import subprocess
import sys
import time
import types

import pytest
from bevkd import start

BEVKD = [sys.executable, "-m", "bevkd"]
LIST = (*BEVKD, "recipes", "ls")
REFUSED = (*BEVKD, "report", "absent")


def shell(command, folder, **environment):
    """Exit code, standard output and standard error of a line of shell; `$@` is the command."""
    line, *arguments = command
    done = subprocess.run(
        ["sh", "-c", line, "sh", *arguments],
        cwd=folder, capture_output=True, check=False, env=os.environ | environment,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_leave_the_exit_code(tmp_path, closed):
    for arguments, code in ((LIST, 0), (REFUSED, 2)):
        found, out, err = shell((f'"$@" {closed}', *arguments), tmp_path)
        assert found == code
        assert "Traceback" not in out + err


def test_a_file_is_not_opened_under_the_number_of_a_closed_stream(tmp_path):
    """What is printed would be written into it."""
    code = (
        "from bevkd.start import open_standard_streams; open_standard_streams()\n"
        "file = open('kept', 'w'); print('printed'); print('x', file=__import__('sys').stderr)\n"
        "assert file.fileno() > 2"
    )
    assert shell(('"$@" <&- >&- 2>&-', sys.executable, "-c", code), tmp_path)[0] == 0
    assert (tmp_path / "kept").read_text() == ""


def test_a_reader_that_goes_away_does_not_end_the_command(tmp_path):
    code, _, err = shell(('{ "$@"; echo "ended with $?" >&2; } | true', *LIST), tmp_path)
    assert (code, err) == (0, "ended with 0\n")


def test_a_full_disk_behind_standard_output_is_one_sentence(tmp_path):
    code, _, err = shell(('"$@" > /dev/full', *LIST), tmp_path)
    assert (code, err) == (2, "No space left on device; correct that and run the same command again\n")


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_any_locale(tmp_path, environment):
    assert shell(('"$@"', *LIST), tmp_path, **environment)[0] == 0
    code, _, err = shell(('"$@"', *BEVKD, "report", "r\u00fcn"), tmp_path, **environment)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_names_that_are_no_text_and_a_folder_that_is_gone(tmp_path):
    code, _, err = shell(("\"$@\" $(printf 'r\\377n')", *BEVKD, "report"), tmp_path)
    assert code == 2
    assert "r\\udcffn is not Unicode text" in err
    (tmp_path / "gone").mkdir()
    code, _, err = shell(('cd gone; rmdir ../gone; "$@"', *LIST), tmp_path)
    assert (code, err) == (2, "the current folder has been removed: change to another one\n")


def test_without_a_home(tmp_path):
    for line in ('env -u HOME "$@"', 'env HOME= "$@"', 'env HOME=/nonexistent/x "$@"'):
        assert shell((line, *LIST), tmp_path)[0] == 0


@pytest.mark.parametrize("command", [LIST, (*BEVKD, "run", "distillbev", "--teacher", "centerpoint", "--plan")])
def test_ctrl_c_during_the_first_moments_exits_with_130(tmp_path, command):
    """From the first line of the package on; before, the interpreter itself is starting."""
    interrupted = 0
    for wait in (0.0, 0.05, 0.1, 0.3, 0.8):
        program = [sys.executable, "-c", f"import sys; sys.argv = {['bevkd', *command[3:]]!r}\n"
                   "from bevkd.start import main; print(flush=True); main()"]  # fmt: skip
        process = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.1 + wait)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, 130), err
        assert b"Traceback" not in err
        interrupted += process.returncode == 130
    assert interrupted >= (1 if command is LIST else 3)


def test_an_interrupt_during_an_import_ends_at_once_and_another_is_raised(monkeypatch):
    class Left(Exception):  # noqa: N818
        pass

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(start.os, "_exit", leave)
    code = types.SimpleNamespace(co_filename="<frozen importlib._bootstrap>")
    importing = types.SimpleNamespace(f_code=code, f_back=None)
    inside = types.SimpleNamespace(f_code=types.SimpleNamespace(co_filename="timm.py"), f_back=importing)
    with pytest.raises((Left, KeyboardInterrupt)) as caught:
        start._interrupt(signal.SIGINT, inside)
    assert (caught.type, caught.value.args) == (Left, (130,))
    with pytest.raises(KeyboardInterrupt):
        start._interrupt(signal.SIGINT, sys._getframe())
