"""Memory that a CPU keeps between steps, instead of asking the system for it again."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import resource, sys
import torch
from recast_cli.engine.runtime.device import tune_process

if "tuned" in sys.argv:
    tune_process(torch.device("cpu"))


def step():
    # larger than 32 MiB each: for smaller ones glibc may learn by itself, and it does so in some processes only
    activations = [torch.ones(2**24) for _ in range(3)]


for _ in range(8):  # the heap grows in the first steps, as small blocks stand between the large ones
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments):
    """Page faults of three steps, after eight others, in a process of its own: the setting is the whole process's."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_step_gets_the_memory_of_the_last_one():
    assert 4 * faults("tuned") < faults()
