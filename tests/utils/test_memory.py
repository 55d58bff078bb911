"""Memory of processes and their children."""

import subprocess
import sys
import time

import pytest

from pipeline.utils import memory, platform
from tests.project import wait_for

HELD = 200 * 10**6
PROGRAM = f"""
import subprocess, sys
if sys.argv[1:]:
    held = bytearray({HELD})
    print("held", flush=True)
    sys.stdin.read()
else:
    subprocess.run([sys.executable, "-c", sys.stdin.readline().encode().decode("unicode_escape"), "child"])
"""


@pytest.fixture
def holding() -> "subprocess.Popen[str]":
    """A process whose child holds ``HELD`` bytes until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdin and process.stdout
    process.stdin.write(PROGRAM.encode("unicode_escape").decode() + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "held\n"
    return process


def test_resident_memory_includes_descendants(holding: "subprocess.Popen[str]") -> None:
    assert HELD < memory.resident(holding.pid) < HELD + 100 * 10**6
    holding.communicate()
    assert memory.resident(holding.pid) == 0


def test_peak_includes_children_that_have_ended(
    holding: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SAMPLE_SECONDS", 0.01)
    with memory.peak_of_this_process() as peak:
        wait_for(lambda: peak.children > HELD, "a sample")
        holding.communicate()
        time.sleep(0.05)
    assert platform.peak_memory() + HELD <= peak.total
    with memory.peak_of_this_process() as peak:
        pass
    assert peak.total == platform.peak_memory() > 10**7


def test_data_parallel_processes_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 of two processes of a launcher counts the other."""
    program = """
import sys, time
from pipeline.utils import memory
memory.SAMPLE_SECONDS = 0.01
held = bytearray(100 * 10**6) if sys.argv[1] == "1" else b""
print("ready", flush=True)
with memory.peak_of_this_process() as peak:
    while sys.argv[1] == "0" and peak.children < 100 * 10**6:
        time.sleep(0.01)
    sys.stdin.read()
"""
    launcher = f"""
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", {program!r}, str(rank)], stdin=subprocess.PIPE) for rank in (1, 0)]
ranks[1].communicate(timeout=60)
ranks[0].communicate()
"""
    monkeypatch.setenv("RANK", "0")
    subprocess.run([sys.executable, "-c", launcher], check=True, timeout=90)
