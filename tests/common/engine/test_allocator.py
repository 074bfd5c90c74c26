"""What becomes of freed memory, in a process of its own: the settings hold until it ends."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from bevkd_common.engine.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

for size in (30_000_000, 200_000_000):
    before = held()
    torch.ones(size, dtype=torch.uint8)
    print(held() - before)
"""


def _left_behind(mode):
    """Bytes that the process holds of 30 MB that were freed, and of 200 MB."""
    done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_is_freed_stays_for_the_next_step_unless_it_is_large():
    kept, large = _left_behind("kept")
    given_back, _ = _left_behind("given back")
    assert kept > 25_000_000
    assert large < 5_000_000
    assert given_back < 5_000_000
