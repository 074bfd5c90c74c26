"""What freed memory costs the next step, in a process of its own: the settings hold until it ends."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from bevkd_common.engine.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def step():
    held = [torch.ones(5_000_000) for _ in range(10)]

for _ in range(10):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
before = held()
torch.ones(50_000_000)
print(held() - before)
"""


def _probed(mode):
    done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_is_freed_serves_the_next_step_unless_it_is_large():
    (kept, large), (given_back, _) = _probed("kept"), _probed("given back")
    assert kept < 20 < given_back
    assert large < 10_000_000  # of 200 MB
