"""Finding tasks: this project's by name, others by module or file, families by their settings."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tasks.loader import file_of, load_task, own_tasks
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

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


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "a_robot_of_mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_the_projects_own_are_found_without_a_list_of_them() -> None:
    assert own_tasks() == ("can", "kitchen", "lift", "pusht", "square", "transport")
    assert all((ROOT / file_of(name)).is_file() for name in own_tasks())


def test_loading_a_task_loads_no_simulator_and_no_reader() -> None:
    program = "import sys; from pipeline.tasks.loader import load_task, own_tasks; [*map(load_task, own_tasks())];"
    program += f"print(*({SIMULATORS} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == []


def test_a_task_of_a_file_outside_the_project_is_found_by_its_path_and_then_by_its_module(mine: Path) -> None:
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
def test_whatever_is_wrong_is_one_line(name: str, settings: dict[str, object] | None, line: str, mine: Path) -> None:
    (mine.parent / "json.py").write_text(MINE, encoding="utf-8")
    with pytest.raises(UserError, match=line) as raised:
        load_task(name.format(mine=mine, folder=mine.parent), settings)
    assert "\n" not in str(raised.value)
