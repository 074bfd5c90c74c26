import io
import time

import pytest
from bevkd_common.progress import ConsoleReporter, SilentReporter
from rich.console import Console


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def reporter(terminal):
    out = io.StringIO()
    return ConsoleReporter(Console(file=out, force_terminal=terminal, width=100)), out


def test_a_log_file_gets_a_line_every_ten_seconds_and_one_at_the_end(clock):
    console, out = reporter(terminal=False)
    with console.bar("training", 100) as bar:
        for second in range(25):
            clock[0] = float(second)
            bar.update(second, note=f"loss {second}")
    assert out.getvalue().splitlines() == [
        "training: 10/100 in 10 s loss 10",
        "training: 20/100 in 20 s loss 20",
        "training: 24/100 in 24 s loss 24",
    ]


def test_a_total_that_is_known_late_is_taken(clock):
    console, out = reporter(terminal=False)
    with console.bar("data", 1) as bar:
        bar.update(3, 7)
    assert out.getvalue() == "data: 3/7 in 0 s\n"


def test_a_terminal_gets_a_live_bar():
    console, out = reporter(terminal=True)
    with console.bar("training", 4) as bar:
        bar.update(2, note="loss 0.5")
        bar.update(4, note="loss 0.25")
    assert "training" in out.getvalue()
    assert "4/4" in out.getvalue()
    assert "loss 0.25" in out.getvalue()


def test_messages_are_printed_as_they_are():
    console, out = reporter(terminal=False)
    console.say("step [bold]1[/bold]")
    assert out.getvalue() == "step [bold]1[/bold]\n"


def test_the_silent_reporter_says_nothing(capsys):
    silent = SilentReporter()
    silent.say("hello")
    with silent.bar("training", 1) as bar:
        bar.update(1)
    assert capsys.readouterr() == ("", "")
