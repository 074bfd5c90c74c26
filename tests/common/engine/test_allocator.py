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

for _ in range(10):
    torch.ones(30_000_000)
before = faults()
for _ in range(5):
    torch.ones(30_000_000)
print(faults() - before)
"""


def _faults(mode):
    done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_is_freed_serves_the_next_step():
    assert _faults("kept") < 20 < _faults("given back")
