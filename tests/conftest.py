"""Settings of the test session, and projects that several test files share."""

import os

import pytest
import torch
import torch._dynamo  # before any rendering: PyTorch's compiler, loaded after Mesa's, crashes the process
from filelock import FileLock

from pipeline.tasks.robomimic.simulator import has_egl
from pipeline.tracking.experiment import open_store
from pipeline.utils.hardware import cores, free_memory
from tests.project import DATABASE, Project
from tests.tiny_project import make_project

if has_egl():  # the first import of MuJoCo decides how the whole process renders
    os.environ.setdefault("MUJOCO_GL", "egl")

for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):  # record no test on the team's server
    os.environ.pop(name, None)

torch.set_num_threads(1)  # tensors in tests are small, and more threads slow a busy machine down


TESTS_MEMORY = 4 * 10**9
"""Bytes for each test process; the largest seen needed 3.7 GB, in tests/perf."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return as many test processes as cores and memory allow; pytest-xdist ignores control groups."""
    return max(1, min(cores(), free_memory() // TESTS_MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run one file that uses ``made`` first and the others last, so that no process waits while another makes it.

    Each process gets a part of the tests in this order, and takes over the last tests of another when it has finished.
    """
    users = list(dict.fromkeys(item.path for item in items if "made" in getattr(item, "fixturenames", ())))
    items.sort(key=lambda item: 1 if item.path not in users else 0 if item.path == users[0] else 2)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an empty MLflow database, migrated once, since a migration takes seconds."""
    root = tmp_path_factory.mktemp("store")
    open_store(root)
    return (root / DATABASE).read_bytes()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project before its first run. Shared: copy it before a change."""
    return make_project(tmp_path_factory.mktemp("sources") / "project")


@pytest.fixture(scope="session")
def made(sources: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project after its whole DAG has run, once for all processes. Shared: copy it before a change."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    done = folder / "made.done"
    with FileLock(folder / "made.lock"):
        if not done.exists():
            sources.copy(folder / "made").check("dvc", "repro")
            done.touch()
    return Project(folder / "made")
