"""Several processes of one command: the exit code of the one that matters, and one message."""

import os
import signal
import subprocess
import sys
import time

import pytest

PRELUDE = """
import os, signal, sys, time
from bevkd.launcher import end
rank = int(os.environ["LOCAL_RANK"])
open(f"started-{rank}", "w").close()
"""
REFUSED = 'raise end("the file is damaged: delete it", 2, "red")'
ENDINGS = {
    "all are refused": (REFUSED, 2, "the file is damaged: delete it"),
    "the first is refused": (f"if rank == 0:\n    {REFUSED}\ntime.sleep(60)", 2, "the file is damaged: delete it"),
    "another is refused": (f"if rank == 1:\n    {REFUSED}\ntime.sleep(60)", 2, "the file is damaged: delete it"),
    "all are interrupted": ('raise end("stopped after step 3", 130, "yellow")', 130, "stopped after step 3"),
    "all are terminated": ('raise end("stopped after step 3", 143, "yellow")', 143, "stopped after step 3"),
    "one is refused when the others are stopped": (
        f"def stop(*_):\n    raise end('stopped', 143, 'yellow')\n"
        f"signal.signal(signal.SIGTERM, stop)\nif rank == 1:\n    {REFUSED}\ntime.sleep(60)",
        2,
        "the file is damaged: delete it",
    ),
    "all succeed": ("", 0, ""),
    "one is killed": ("if rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)", 137, ""),
}  # fmt: skip


def start(folder, code):
    (folder / "script.py").write_text(PRELUDE + code)
    command = [sys.executable, "-m", "bevkd.launcher", "--nproc-per-node=2", "--standalone", "script.py"]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_exit_code_is_kept_and_the_message_is_said_once(tmp_path, ending):
    code, expected, message = ENDINGS[ending]
    process = start(tmp_path, code)
    _, err = process.communicate(timeout=120)
    assert process.returncode == expected, err
    assert err.strip() == message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process(tmp_path, number):
    """Each stops as a training does, when torchrun passes the signal on."""
    code = """
def stop(number, frame):
    open(f"stopped-{rank}", "w").close()
    raise end("stopped after step 3", 128 + number, "yellow")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
open(f"ready-{rank}", "w").close()
time.sleep(60)
"""
    process = start(tmp_path, code)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip() == "stopped after step 3"
    assert len(list(tmp_path.glob("stopped-*"))) == 2
