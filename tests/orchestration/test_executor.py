"""Parallel execution of stages on a small DVC project, compared with ``dvc repro``."""

import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.orchestration import repro
from pipeline.orchestration.output import Screen
from pipeline.utils.errors import UserError
from tests.project import ROOT, Project, executed, wait_for

DRIVER = ("pipeline.orchestration.executor", "--jobs", "2")
DVC_YAML = """
stages:
  left: {cmd: exec python meet.py left right, deps: [meet.py], params: [long, list], outs: [left.txt]}
  right: {cmd: exec python meet.py right left, deps: [meet.py], outs: [right.txt]}
  after: {cmd: exec python after.py, deps: [after.py, left.txt, right.txt], outs: [after.txt: {cache: false}]}
"""
PARAMS = f"long: {'word ' * 40}\nlist: [1, [2, 3]]\nother: 1\n"
MEET = """
import os, sys, time
from pathlib import Path

own, other = sys.argv[1:]
here, there = Path(f"{own}.here"), Path(f"{other}.here")
here.touch()
end = time.monotonic() + float(os.environ["PATIENCE"])
while not there.exists() and time.monotonic() < end:
    time.sleep(0.01)
if os.environ["PATIENCE"] != "0" and not there.exists():
    sys.exit(f"{own} was alone")
Path(f"{own}.txt").write_text(own, encoding="utf-8")
Path(f"{own}.gone").touch()
"""
AFTER = """
from pathlib import Path

assert Path("left.gone").exists() and Path("right.gone").exists(), "before its inputs were done"
both = [Path(f"{side}.txt").read_text(encoding="utf-8") for side in ("left", "right")]
Path("after.txt").write_text("".join(both), encoding="utf-8")
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make(tmp_path / "project", DVC_YAML)


def make(root: Path, stages: str) -> Project:
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    for name, text in (("dvc.yaml", stages), ("params.yaml", PARAMS), ("meet.py", MEET), ("after.py", AFTER)):
        (root / name).write_text(text, encoding="utf-8")
    return Project(root, {"PYTHONPATH": str(ROOT), "PATIENCE": "30"})


def test_independent_stages_overlap_and_match_dvc_repro(project: Project, tmp_path: Path) -> None:
    one_by_one = project.copy(tmp_path / "one_by_one", PYTHONPATH=str(ROOT), PATIENCE="0")

    output = project.check(*DRIVER).stdout

    assert sorted(executed(output)) == ["after", "left", "right"]
    one_by_one.check("dvc", "repro")
    locks = [YAML(typ="safe").load(p.root / "dvc.lock") for p in (project, one_by_one)]
    assert locks[0] == locks[1]
    assert project.files(".dvc/cache/files") == one_by_one.files(".dvc/cache/files") != {}

    assert project.check(*DRIVER).stdout == "Data and pipelines are up to date.\n"

    (project.root / "meet.py").write_text(MEET + "# which makes the same\n", encoding="utf-8")
    output = project.check(*DRIVER).stdout
    assert sorted(executed(output)) == ["left", "right"]
    assert "after | Stage 'after' didn't change, skipping\n" in output


IMPORTED = """
import os
from pathlib import Path

with Path("imports").open("a", encoding="utf-8") as file:
    file.write(f"{os.getpid()}\\n")
VALUE = 1
"""
IMPORTING = """
import multiprocessing
import sys
from pathlib import Path

from stages.imported import VALUE

if __name__ == "__main__":
    out, *more = sys.argv[1:]
    if more == ["edit"]:
        file = Path("stages/imported.py")
        file.write_text(file.read_text(encoding="utf-8").replace("VALUE = 1", "VALUE = 2"), encoding="utf-8")
    if more == ["fail"]:
        raise ValueError("on purpose")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(abs, [-1]) == [1]
    Path(out).write_text(str(VALUE), encoding="utf-8")
"""


ENTRY = "from pipeline.utils.handover import run_by_server\nrun_by_server()\n"


def importing(root: Path, *last: str) -> Project:
    """Make a chain of three stages of one program; the middle stage gets the arguments ``last``."""
    chain = f"""
stages:
  a: {{cmd: exec python -m stages.program a.txt, outs: [a.txt]}}
  b: {{cmd: exec python -m stages.program {" ".join(("b.txt", *last))}, deps: [a.txt], outs: [b.txt]}}
  c: {{cmd: exec python -m stages.program c.txt, deps: [b.txt], outs: [c.txt]}}
"""
    project = make(root, chain)
    (project.root / "stages").mkdir()
    for name, text in (("__init__", ENTRY), ("imported", IMPORTED), ("program", IMPORTING)):
        (project.root / "stages" / f"{name}.py").write_text(text, encoding="utf-8")
    return project


def test_imports_are_shared_by_all_stages(tmp_path: Path) -> None:
    project = importing(tmp_path / "project")
    output = project.check(*DRIVER).stdout
    assert executed(output) == ["a", "b", "c"]
    assert output.count("exec python") == 3
    assert not (project.root / ".flowtune" / "programs.sock").exists()
    imports = (project.root / "imports").read_text(encoding="utf-8").split()
    # one by the server, and one by each process that the programs spawn
    assert len(imports) == len(set(imports)) == 4
    assert [(project.root / f"{name}.txt").read_text(encoding="utf-8") for name in "abc"] == ["1", "1", "1"]


def test_program_edited_during_a_run_is_reloaded(tmp_path: Path) -> None:
    project = importing(tmp_path / "project", "edit")
    project.check(*DRIVER)
    assert [(project.root / f"{name}.txt").read_text(encoding="utf-8") for name in "abc"] == ["1", "1", "2"]


def test_failed_program_is_reported_with_its_dependents(tmp_path: Path) -> None:
    project = importing(tmp_path / "project", "fail")
    unmade = project.root / "unmade.json"
    result = project.run(*DRIVER, "--unmade", str(unmade))
    assert result.returncode == 1
    assert "b | ValueError: on purpose\n" in result.stdout
    assert "failed to run: exec python -m stages.program b.txt fail, exited with 1" in result.stdout
    assert result.stderr.splitlines()[-2:] == ["failed: b", "not run: c"]
    assert json.loads(unmade.read_text(encoding="utf-8")) == {
        "outs": ["b.txt", "c.txt"],
        "commands": {"c": "exec python -m stages.program c.txt"},
    }


def test_params_edited_during_a_run_apply_to_later_stages(tmp_path: Path) -> None:
    chain = """
stages:
  edit: {cmd: "sed -i 's/other: 1/other: 2/' params.yaml && touch edited.txt", outs: [edited.txt]}
  read: {cmd: cp params.yaml read.txt, deps: [edited.txt], params: [other], outs: [read.txt]}
"""
    project = make(tmp_path / "project", chain)
    project.check(*DRIVER)
    assert "other: 2" in (project.root / "read.txt").read_text(encoding="utf-8")
    lock = YAML(typ="safe").load(project.root / "dvc.lock")
    assert lock["stages"]["read"]["params"] == {"params.yaml": {"other": 2}}
    assert project.check(*DRIVER).stdout == "Data and pipelines are up to date.\n"


def test_failed_stage_stops_only_its_dependents(tmp_path: Path) -> None:
    stages = """
stages:
  broken: {cmd: exec python make.py, outs: [broken.txt]}
  needy: {cmd: exec python make.py needy.txt, deps: [broken.txt], outs: [needy.txt]}
  first: {cmd: exec python make.py first.txt, outs: [first.txt]}
  second: {cmd: exec python make.py second.txt, deps: [first.txt], outs: [second.txt]}
"""
    project = make(tmp_path / "project", stages)
    (project.root / "make.py").write_text("import sys; open(sys.argv[1], 'w')", encoding="utf-8")
    result = project.run(*DRIVER)
    assert result.returncode == 1
    assert sorted(executed(result.stdout)) == ["broken", "first", "second"]
    assert result.stderr.splitlines()[-2:] == ["failed: broken", "not run: needy"]
    assert (project.root / "second.txt").exists()


def test_interrupt_ends_every_stage(project: Project) -> None:
    # both stages wait for each other for ever
    (project.root / "meet.py").write_text(MEET.replace("not there.exists()", "True"), encoding="utf-8")
    driver = project.start(*DRIVER)
    wait_for(lambda: len(list(project.root.glob("*.here"))) == 2, "the stages to be at work")
    os.kill(driver.pid, signal.SIGINT)  # to the driver alone: Ctrl-C in a terminal goes to all
    out, err = driver.communicate(timeout=30)
    assert driver.returncode == 130, out + err
    assert not project.processes()
    assert not (project.root / "dvc.lock").exists()


def test_output_is_shown_by_line_and_progress_is_throttled(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        for piece in ("one\n", "\r", " 10%\r", " 20%\x1b[A\r", "100%\n", "\n", "☃"):
            screen.show("stage", piece)
        screen.show("other", " 5%\r")
    assert capsys.readouterr().out.splitlines() == [
        "stage | one", "stage |  10%", "stage | 100%", "stage | ☃", "other |  5%"
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["0", "-1", "many", ""])
def test_invalid_number_of_jobs_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"--jobs: given .*, allowed: a whole number, at least 1"):
        repro._jobs(given)


@pytest.mark.parametrize("cores", [1, 2, 4, 16])
def test_number_of_parallel_stages_follows_cores_and_threads(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    robot, images = SimpleNamespace(threads=2, processes=1), SimpleNamespace(threads=1, processes=1)
    block = SimpleNamespace(task=lambda _: robot, image_task=lambda _: images)
    settings: Any = SimpleNamespace(scale="starter", tasks=["pusht"], images=["digits"], block=lambda _: block)
    monkeypatch.setattr(repro, "cores", lambda: cores)
    monkeypatch.setattr(repro, "gpus", lambda: 0)
    assert repro.fitting_jobs(settings) == max(1, cores // 2)
    robot.processes = 4
    assert repro.fitting_jobs(settings) == max(1, cores // 8)
    monkeypatch.setattr(repro, "gpus", lambda: 1)
    assert repro.fitting_jobs(settings) == 1


SHORT_OF_MEMORY = """
import sys

import pipeline.orchestration.needs
import pipeline.orchestration.executor

pipeline.orchestration.needs.free_memory = lambda: 10**9
pipeline.orchestration.executor.need_of = lambda programs, table: 6 * 10**8
sys.exit(pipeline.orchestration.executor.main())
"""


def test_stages_run_one_by_one_when_memory_is_short(project: Project) -> None:
    (project.root / "short.py").write_text(SHORT_OF_MEMORY, encoding="utf-8")
    result = project.check("short", "--jobs", "2", PATIENCE="0")
    assert sorted(executed(result.stdout)) == ["after", "left", "right"]
    (line,) = [line for line in result.stdout.splitlines() if "waits" in line]
    assert re.fullmatch(
        r"(left|right) \| waits for memory: it needs 0\.6 GB, and 0\.[45] GB are free beside (left|right)", line
    )
    first, second = executed(result.stdout)[:2]
    assert line.startswith(f"{second} | ") and line.endswith(f" {first}")
