"""Projects that several test files start from; each is made once."""

import os

import pytest
import torch

from pipeline.tasks.robomimic_env import has_egl
from tests.project import Project, make_project

if has_egl():  # whichever test imports MuJoCo first decides how all of this process draw
    os.environ.setdefault("MUJOCO_GL", "egl")

torch.set_num_threads(1)  # tests' tensors are small, and threads that wait for each other slow a busy machine down


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Divide the tests among processes by file, except that all that use ``made`` go to the process that makes it.

    These come first, since they take the longest.
    """
    items.sort(key=lambda item: "made" not in _fixtures(item))
    for item in items:
        group = "made" if "made" in _fixtures(item) else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project before its first run. Shared: copy it before changing anything."""
    return make_project(tmp_path_factory.mktemp("sources") / "project")


@pytest.fixture(scope="session")
def made(sources: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its whole DAG has run. Shared: copy it before changing anything."""
    project = sources.copy(tmp_path_factory.mktemp("made") / "project")
    project.check("pipeline.repro")
    return project
