"""Loading tasks by name, module or file, and task families by their settings."""

import hashlib
import inspect
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.tasks.loader import file_of, load_task, own_families, own_tasks
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from tests.project import write_checksum
from tests.tasks import test_conformance

SIMULATORS = {"gymnasium", "gym_pusht", "pymunk", "mujoco", "robosuite", "robomimic", "minari", "zarr", "h5py", "torch"}
MINE = """
from pydantic import BaseModel, ConfigDict

from pipeline.tasks.api import Task, TaskFamily


class Size(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    components: int


def make(size: Size) -> Task:
    return Task(f"of {size.components}", {}, {}, size.components)


TASK = Task("Mine", {}, {}, 3)
FAMILY = TaskFamily(Size, make)
NUMBER = 3
"""


def put_outside(folder: Path) -> Path:
    """Copy a task in one file and its data set to ``folder``; return the file."""
    path = Path(shutil.copy(ROOT / "tests" / "tasks" / "a_point.py", folder / "point_of_mine.py"))
    starts = folder / "starts.txt"
    np.savetxt(starts, np.random.default_rng(0).uniform(-1, 1, (6, 2)))
    write_checksum(starts)
    return path


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "a_robot_of_mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_own_tasks_are_discovered() -> None:
    assert own_tasks() == ("can", "kitchen", "lift", "pusht", "seattle_weather", "square", "transport")
    assert own_families() == ("custom",)
    assert all((ROOT / file_of(name)).is_file() for name in (*own_tasks(), *own_families()))


def test_loading_a_task_imports_no_simulator_or_file_reader() -> None:
    program = "import sys; from pipeline.tasks.loader import load_task, own_tasks; [*map(load_task, own_tasks())];"
    source = {"path": "data/mine", "observation": {"pose": 3}, "action": {"action": 2}}
    given = {"datasets": {"mine": source}, "environment": {"id": "Walk-v0", "success": "solved", "max_steps": 9}}
    program += f"load_task('custom', {given});"
    program += f"print(*({SIMULATORS} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == []


def test_task_outside_the_project_is_found_by_path_and_by_module(mine: Path) -> None:
    assert load_task(f"{mine}:TASK").title == "Mine"
    assert load_task(f"{mine.stem}:TASK") is load_task(f"{mine}:TASK")
    assert file_of(f"{mine}:TASK") == file_of(f"{mine.stem}:TASK") == str(mine)
    assert pickle.loads(pickle.dumps(load_task(f"{mine}:FAMILY", {"components": 2}))).action_dim == 2


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        (
            "juggling",
            None,
            r"given 'juggling', allowed: can, kitchen, .*; of your own: module:name or path/to/file\.py",
        ),
        ("windows", None, "given 'windows', allowed: can, "),
        ("no_such_module:TASK", None, "given 'no_such_module:TASK', which cannot be imported: No module named"),
        ("{mine}:TASKS", None, "given '.*:TASKS', allowed: a name in .*a_robot_of_mine.py, which has no 'TASKS'"),
        ("{mine}:NUMBER", None, r"allowed: a pipeline\.tasks\.api\.Task; .*:NUMBER is of type int"),
        ("{mine}:FAMILY", None, "given '.*' alone, allowed: with a block custom, which it is made from"),
        ("{mine}:FAMILY", {"components": "two"}, "^custom.components: given 'two', allowed: "),
        ("{mine}:FAMILY", {}, "^custom.components: "),
        ("{mine}:TASK", {"components": 2}, "given '.*' with a block custom, allowed: custom where a task is made from"),
        ("{folder}/json.py:TASK", None, r"allowed: a file of another name; json is .*json/__init__\.py"),
    ],
)
def test_invalid_task_names_give_a_one_line_error(
    name: str, settings: dict[str, object] | None, line: str, mine: Path
) -> None:
    (mine.parent / "json.py").write_text(MINE, encoding="utf-8")
    with pytest.raises(UserError, match=line) as raised:
        load_task(name.format(mine=mine, folder=mine.parent), settings)
    assert "\n" not in str(raised.value)


def test_conformance_suite_passes_on_an_external_task(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/tasks/test_conformance.py"],
        cwd=ROOT,
        env=os.environ | {"FLOWTUNE_TASK": f"{put_outside(tmp_path)}:TASK"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0 and "8 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("action_dim=2", "action_dim=3"),
        ("np.random.default_rng(seed)", "np.random.default_rng()"),
        ("Observation(2, encode)", "Observation(2, lambda states: encode(states - states.max()))"),
        ("EnvSpec(Point, 20)", "EnvSpec(lambda steps: Point(steps), 20)"),
        ("self.steps >= self.max_steps", "self.steps >= 20"),
        ("action_bounds=((-1, -1), (1, 1))", "action_bounds=((0, 0), (1, 1))"),
        ("max(0.0, 1 - distance)", "1 - 9 * distance"),
    ],
)
def test_conformance_suite_fails_on_a_bad_task(old: str, new: str, tmp_path: Path) -> None:
    path = put_outside(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert old in text
    name = f"bad_{hashlib.sha256(new.encode()).hexdigest()[:8]}"
    path.with_name(f"{name}.py").write_text(text.replace(old, new, 1), encoding="utf-8")
    task = load_task(f"{path.with_name(name)}.py:TASK")
    demonstrations = task.datasets["starts"].read(tmp_path / "starts.txt")
    checks = [check for check in vars(test_conformance).values() if getattr(check, "__name__", "").startswith("test_")]
    assert len(checks) == 8
    with pytest.raises((AssertionError, pickle.PicklingError, AttributeError)):
        for check in checks:
            check(*(task, demonstrations)[: len(inspect.signature(check).parameters)])
