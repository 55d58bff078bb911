"""Projects that several test files start from; each is made once."""

import os

import pytest
import torch
import torch._dynamo  # before any test draws: PyTorch's compiler, loaded after Mesa's, ends the process
from filelock import FileLock

from pipeline.tasks.robomimic.simulator import has_egl
from pipeline.tracking.experiment import open_store
from pipeline.utils.hardware import cores, free_memory
from tests.project import DATABASE, Project, make_project

if has_egl():  # whichever test imports MuJoCo first decides how all of this process draw
    os.environ.setdefault("MUJOCO_GL", "egl")

for name in (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
):  # what tests do is not recorded where the team's runs are
    os.environ.pop(name, None)

torch.set_num_threads(1)  # tests' tensors are small, and threads that wait for each other slow a busy machine down


TESTS_MEMORY = 4 * 10**9
"""Bytes that one of several test processes needs, by the largest seen: 3.7 GB in tests/perf."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many test processes as there are cores, and memory for them: pytest-xdist knows no control groups."""
    return max(1, min(cores(), free_memory() // TESTS_MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the run of the whole DAG, and leave the tests of what it made to the end.

    Each process is given a part of the tests in this order, and takes over the last of another's when it has none left:
    one makes the project, and none waits for that.
    """
    users = list(dict.fromkeys(item.path for item in items if "made" in getattr(item, "fixturenames", ())))
    items.sort(key=lambda item: 1 if item.path not in users else 0 if item.path == users[0] else 2)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty database of MLflow's, migrated once: that takes seconds."""
    root = tmp_path_factory.mktemp("store")
    open_store(root)
    return (root / DATABASE).read_bytes()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project before its first run. Shared: copy it before changing anything."""
    return make_project(tmp_path_factory.mktemp("sources") / "project")


@pytest.fixture(scope="session")
def made(sources: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its whole DAG has run, once for all processes. Shared: copy it before changing anything."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    done = folder / "made.done"
    with FileLock(folder / "made.lock"):
        if not done.exists():
            sources.copy(folder / "made").check("dvc", "repro")
            done.touch()
    return Project(folder / "made")
