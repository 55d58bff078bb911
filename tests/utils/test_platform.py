"""The fallbacks for systems that are not Linux, run on it: children, identities, locks, whole stages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.utils import platform
from tests.orchestration.test_executor import DVC_YAML, MEET, make
from tests.project import ALONE, DATABASE, ROOT, Project, copy_code, executed, kill, on_another_system, wait_for

ONLY_THERE = r"prctl|fcntl|pidfd|/proc/|\bos\.fork\b|sched_getaffinity|cpu_count|ctypes\.CDLL\(None\)"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the code that runs by the fallbacks."""
    root = tmp_path_factory.mktemp("code")
    copy_code(root)
    on_another_system(root)
    return root


def test_platform_specific_calls_are_in_one_module() -> None:
    files = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]
    found = [str(file.relative_to(ROOT)) for file in files if re.search(ONLY_THERE, file.read_text(encoding="utf-8"))]
    assert found == ["pipeline/utils/platform.py"]


def test_fallbacks_of_the_platform_module_work(elsewhere: Path) -> None:
    program = """
import os, subprocess, sys
from pipeline.utils import processes
from pipeline.utils import platform

assert not platform.FORK_IS_SAFE and platform.cpus() >= 1 and platform.processor()
platform.keep_freed_memory(); platform.name_process("name"); platform.adopt_orphans()
assert platform.peak_memory() > 10**6
try:
    platform.forget_peak_memory()
except OSError:
    pass
else:
    raise AssertionError
with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
    name = processes.identity(child.pid)
    assert not processes.is_gone(name) and processes.identity(child.pid) == name != processes.identity(os.getpid())
assert processes.is_gone(name)
"""
    subprocess.run([sys.executable, "-c", program], cwd=elsewhere, check=True)


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w", encoding="utf-8") as first, path.open("w", encoding="utf-8") as second:
        platform.lock(first, shared=True)
        platform.lock(second, shared=True)
        with pytest.raises(BlockingIOError):
            platform.lock(first)
        second.close()
        platform.lock(first, wait=True)


@pytest.mark.parametrize("command", ["sleep 61 & echo $!; wait", "echo $$; exec sleep 61"])
def test_a_supervised_command_dies_with_its_parent(elsewhere: Path, command: str) -> None:
    program = (
        "import os, time\nfrom pathlib import Path\nfrom pipeline.utils import processes\n"
        f"child = processes.start(['sh', '-c', {command!r}], cwd=Path('.'), env=os.environ)\n"
        "print(child.stdout.readline(), end='', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=elsewhere, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_for(lambda: is_gone(pid), "the command to end")


def test_supervised_command_is_stopped_and_its_exit_code_returned(elsewhere: Path) -> None:
    program = """
import os
from pathlib import Path
from pipeline.utils import processes

ends = processes.start(["sh", "-c", "exit 3"], cwd=Path("."), env=os.environ)
assert ends.wait() == 3
told = processes.start(["sh", "-c", "sleep 61 & echo; wait"], cwd=Path("."), env=os.environ)
told.stdout.readline()
processes.stop([told])
assert told.returncode == 128 + 15, told.returncode
"""
    subprocess.run([sys.executable, "-c", program], cwd=elsewhere, check=True, timeout=60)


def is_gone(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


def test_parallel_stages_with_fallbacks_leave_the_lock_and_cache_of_dvc(elsewhere: Path, tmp_path: Path) -> None:
    there, here = make(tmp_path / "there", DVC_YAML), make(tmp_path / "here", DVC_YAML)
    output = there.check("pipeline.orchestration.executor", "--jobs", "2", PYTHONPATH=str(elsewhere)).stdout
    assert sorted(executed(output)) == ["after", "left", "right"]
    assert "left | Running stage 'left':\n" in output
    here.check("dvc", "repro", PATIENCE="0")
    locks = [YAML(typ="safe").load(project.root / "dvc.lock") for project in (there, here)]
    assert locks[0] == locks[1]
    assert there.files(".dvc/cache/files") == here.files(".dvc/cache/files") != {}


def test_started_stages_end_with_an_interrupt_and_with_a_killed_driver(elsewhere: Path, tmp_path: Path) -> None:
    project = make(tmp_path / "project", DVC_YAML)
    (project.root / "meet.py").write_text(MEET.replace("not there.exists()", "True"), encoding="utf-8")
    project.env["PYTHONPATH"] = str(elsewhere)
    for end in ("interrupt", "kill"):
        driver = project.start("pipeline.orchestration.executor", "--jobs", "2")
        wait_for(lambda: len(list(project.root.glob("*.here"))) == 2, "the stages to be at work")
        if end == "kill":
            kill(driver)
            wait_for(lambda: not project.processes(), "the end")
        else:
            driver.send_signal(2)
            out, err = driver.communicate(timeout=60)
            assert driver.returncode == 130, out + err
            assert not project.processes()
        assert not (project.root / "dvc.lock").exists()
        for file in project.root.glob("*.here"):
            file.unlink()
    for pid in project.processes():
        os.kill(pid, 9)


def test_recorded_stage_runs_with_all_fallbacks(sources: Project, made: Project, tmp_path: Path) -> None:
    project = sources.copy(tmp_path / "project", **ALONE)
    on_another_system(project.root)
    project.keep_stages("resolve", "tabulate_settings")
    result = project.check("pipeline.orchestration.repro", "--jobs", "2", FLOWTUNE_TRACKING="on")
    project.recorded()
    assert sorted(executed(result.stdout)) == ["resolve", "tabulate_settings@starter"]
    assert "warning" not in result.stderr
    assert (project.root / DATABASE).exists()
    reports, whole = project.files("reports"), made.files("reports")
    assert reports and reports == {name: whole[name] for name in reports}


def test_a_stage_dies_with_a_killed_repro(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project", **ALONE)
    on_another_system(project.root)
    project.keep_stages("resolve", "pretrain")
    project.params("starter.pusht.pretrain.steps", 100_000)
    repro = project.start("pipeline.orchestration.repro")
    at_work = "the stage to be at work, in a Python of its own"
    wait_for(lambda: any("stages.train" in line for line in project.processes().values()), at_work, seconds=300)
    kill(repro)
    wait_for(lambda: not project.processes(), "the driver and the stage to die")
