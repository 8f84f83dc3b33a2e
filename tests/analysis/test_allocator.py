"""Where freed memory goes, in a process of its own: the settings last as long as the process."""

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, torch
from locatvit.analysis import allocator

allocator.{name}()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(4 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(min(faults() for _ in range(10)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose settings these are")
@pytest.mark.parametrize(("name", "comes_anew"), [("keep", False), ("give_back_at_once", True)])
def test_memory_that_is_let_go(name, comes_anew):
    """A tensor of 16 MiB, 4,096 pages or fewer large ones, after one of the same size: comes it anew each time?"""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(name=name)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 4) == comes_anew, done.stdout
