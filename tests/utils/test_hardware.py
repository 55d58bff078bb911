"""Detected cores, memory and GPUs of faked machines: cgroups of both versions, affinity and drivers."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from pipeline.utils import hardware
from tests.project import ROOT

GB = 2**30
UNLIMITED_V1 = 2**63 - 4096


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake 16 cores and 64 GB."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GB))


V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw shared:4 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
OTHER = "24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
JOB = "0::/user/job\n"
JOB_V1 = "4:memory:/user/job\n2:cpu,cpuacct:/user/job\n1:name=systemd:/\n0::/\n"


def write(root: Path, files: dict[str, object], groups: str = JOB, mounts: str = OTHER + V2) -> Path:
    """Write a /proc that names a process's control groups, and their ``files`` below /sys/fs/cgroup."""
    proc = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    for name, text in {**proc, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n", encoding="utf-8")
    return root


def write_v1(root: Path, files: dict[str, object]) -> Path:
    """Write the same with version 1 beside an empty version 2."""
    return write(root, files, JOB_V1, OTHER + V1)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max", 16), ("1600000", 16), ("400000", 4), ("200000", 2), ("150000", 2), ("140000", 1), ("20000", 1)],
)
def test_cores_are_those_of_the_quota_rounded_and_at_least_one(tmp_path: Path, quota: str, expected: int) -> None:
    assert hardware.cores(write(tmp_path / "2", {"user/job/cpu.max": f"{quota} 100000"})) == expected
    place = "cpu,cpuacct/user/job/cpu.cfs_"
    files = {f"{place}quota_us": -1 if quota == "max" else quota, f"{place}period_us": 100000}
    assert hardware.cores(write_v1(tmp_path / "1", files)) == expected


def test_tightest_parent_group_and_affinity_limit_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"user/job/cpu.max": "max 100000", "user/cpu.max": "300000 100000", "cpu.max": "800000 100000"}
    root = write(tmp_path, files)
    assert hardware.cores(root) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2))
    assert hardware.cores(root) == 2


def test_a_container_sees_its_own_group_at_the_top_of_its_mount(tmp_path: Path) -> None:
    quota, inside = {"cpu.max": "200000 100000"}, V2.replace("0:26 / ", "0:26 /docker/abc ")
    assert hardware.cores(write(tmp_path / "a", quota, "0::/docker/abc\n", inside)) == 2
    below = {"job/cpu.max": "100000 100000"}
    assert hardware.cores(write(tmp_path / "b", quota | below, "0::/docker/abc/job\n", inside)) == 1
    assert hardware.cores(write(tmp_path / "c", quota, "0::/../other\n", V2)) == 2


def test_a_machine_without_control_groups_has_its_affinity_and_its_memory(tmp_path: Path) -> None:
    assert hardware.cores(tmp_path) == 16
    assert hardware.free_memory(tmp_path) == 64 * GB


def test_free_memory_is_what_the_tightest_group_leaves_plus_page_cache(tmp_path: Path) -> None:
    files = {
        "user/job/memory.max": "max",
        "user/job/memory.current": GB,
        "user/memory.max": 8 * GB,
        "user/memory.current": 5 * GB,
        "user/memory.stat": f"anon 1\ninactive_file {2 * GB}\nactive_file {GB}",
    }
    assert hardware.free_memory(write(tmp_path, files)) == 5 * GB
    files["user/job/memory.high"] = 3 * GB
    assert hardware.free_memory(write(tmp_path, files)) == 2 * GB
    files["user/job/memory.current"] = 4 * GB
    assert hardware.free_memory(write(tmp_path, files)) == 0


def test_free_memory_of_version_1_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    group = "memory/user/job/memory."
    files = {f"{group}usage_in_bytes": 3 * GB, f"{group}stat": f"inactive_file 5\ntotal_inactive_file {GB}"}
    assert hardware.free_memory(write_v1(tmp_path, files | {f"{group}limit_in_bytes": UNLIMITED_V1})) == 64 * GB
    assert hardware.free_memory(write_v1(tmp_path, files | {f"{group}limit_in_bytes": 4 * GB})) == 2 * GB


@pytest.mark.parametrize("cores", [1, 2, 4, 16])
def test_workers_and_threads_are_at_most_the_cores(
    cores: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    assert [hardware.fitting_workers(wanted) for wanted in (0, 1, 2, 16)] == [0, 1, min(2, cores), cores]
    before = torch.get_num_threads()
    try:
        with threadpool_limits(None):
            hardware.use_threads(4)
            assert torch.get_num_threads() == min(4, cores)
            blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
            assert blas and max(blas) <= min(4, cores)
            told = capsys.readouterr().err
            assert told.startswith(f"threads: given 4, {cores} used") if cores < 4 else told == ""
            monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
            monkeypatch.setenv("RANK", "1")
            hardware.use_threads(4)
            assert torch.get_num_threads() == max(1, min(4, cores // 2))
            assert capsys.readouterr().err == ""
    finally:
        torch.set_num_threads(before)


def gpus(tmp_path: Path, driver: str) -> str:
    """Return the count of a new Python with a fake PyTorch of three GPUs, and whether it has imported PyTorch."""
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("from . import cuda\n", encoding="utf-8")
    (package / "cuda.py").write_text("def device_count(): return 3\n", encoding="utf-8")
    program = f"""
import ctypes, sys
from pipeline.utils import hardware
{driver}
print(hardware.gpus(), "torch" in sys.modules)
"""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, encoding="utf-8", check=True
    ).stdout


def test_gpus_are_counted_in_another_process_and_only_with_a_driver(tmp_path: Path) -> None:
    with_driver, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_driver, without):
        folder.mkdir()
    assert gpus(with_driver, "ctypes.CDLL = lambda name: None") == "3 False\n"
    fails = "def absent(name): raise OSError(name)\nctypes.CDLL = absent"
    assert gpus(without, fails) == "0 False\n"
