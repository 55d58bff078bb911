"""The environment of this project's programs: caches inside the project, loopback past proxies, mirrors of the root."""

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.utils.code_deps import ROOT
from pipeline.utils.environment import CACHES, remember_for_dvc, variables


def test_caches_are_inside_the_project(tmp_path: Path) -> None:
    found = variables(tmp_path, dict.fromkeys(CACHES, "/elsewhere"))
    assert {Path(found[name]).parent for name in CACHES} == {tmp_path / ".flowtune"}


@pytest.mark.parametrize(
    ("inherited", "hosts"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": ".lab.example, localhost"}, ".lab.example,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a.example", "NO_PROXY": "b.example"}, "a.example,b.example,127.0.0.1,localhost,::1"),
    ],
)
def test_loopback_hosts_are_added_to_no_proxy(inherited: dict[str, str], hosts: str, tmp_path: Path) -> None:
    found = variables(tmp_path, inherited)
    assert found["no_proxy"] == found["NO_PROXY"] == hosts


@pytest.mark.parametrize("given", ["data/mirror", "../mirror"])
def test_a_relative_mirror_is_relative_to_the_root(given: str, tmp_path: Path) -> None:
    assert variables(tmp_path, {"FLOWTUNE_MIRROR": given})["FLOWTUNE_MIRROR"] == str(tmp_path / given)


def test_absolute_mirror_is_kept_and_an_empty_one_dropped(tmp_path: Path) -> None:
    assert variables(tmp_path, {"FLOWTUNE_MIRROR": "/data/mirror"})["FLOWTUNE_MIRROR"] == "/data/mirror"
    assert "FLOWTUNE_MIRROR" not in variables(tmp_path, {"FLOWTUNE_MIRROR": ""})


def test_dvc_is_configured_for_a_project_without_git(tmp_path: Path) -> None:
    assert Path(variables(tmp_path, {})["DVC_SYSTEM_CONFIG_DIR"]) == tmp_path / ".dvc" / "no_git"
    (tmp_path / ".git").mkdir()
    assert "DVC_SYSTEM_CONFIG_DIR" not in variables(tmp_path, {})


def test_unknown_user_gets_a_name_and_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {"USER", "HOME"} & set(variables(tmp_path, {}))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    found = variables(tmp_path, {})
    assert (found["USER"], found["HOME"]) == (f"user-{os.getuid()}", str(tmp_path / ".flowtune" / "home"))


RunPython = Callable[..., str]


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Return a function that runs Python in a project of this one's utilities and returns its output."""
    (tmp_path / "pipeline").mkdir()
    shutil.copy(ROOT / "pipeline" / "__init__.py", tmp_path / "pipeline")
    shutil.copytree(ROOT / "pipeline" / "utils", tmp_path / "pipeline" / "utils")
    kept = {name: value for name, value in os.environ.items() if name not in (*CACHES, "FLOWTUNE_ROOT")}

    def run_python(*arguments: str, **env: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=kept | env, stdout=subprocess.PIPE, encoding="utf-8", check=True
        ).stdout

    return run_python


def test_programs_use_the_environment_and_importers_keep_theirs(run_python: RunPython, tmp_path: Path) -> None:
    show = "import os, pipeline; print(os.environ.get('MPLCONFIGDIR'))"
    for program in ("pipeline/program.py", "own.py"):
        (tmp_path / program).write_text(show, encoding="utf-8")
    assert run_python("-m", "pipeline.program") == f"{tmp_path / '.flowtune' / 'matplotlib'}\n"
    assert run_python("-m", "own") == run_python("own.py") == run_python("-c", show) == "None\n"


def test_programs_have_utf_8_in_every_locale(run_python: RunPython, tmp_path: Path) -> None:
    program = "import sys; print(sys.argv[1], sys.stdout.encoding, open('own.txt').read())"
    (tmp_path / "pipeline" / "program.py").write_text(program, encoding="utf-8")
    (tmp_path / "own.txt").write_text("−", encoding="utf-8")
    plainest = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run_python("-m", "pipeline.program", "größer", **plainest) == "größer utf-8 −\n"


def test_dvc_by_itself_keeps_its_caches_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    root = tmp_path / "größer 'x'"
    file = remember_for_dvc(root)
    monkeypatch.setattr(os, "environ", {})
    exec(file.read_text(encoding="ascii"))  # as Python's site executes .pth files
    assert file.suffix == ".pth" and os.environ == {"DVC_SITE_CACHE_DIR": str(root / ".flowtune" / "dvc")}
    monkeypatch.setattr(os, "environ", {"DVC_SITE_CACHE_DIR": "mine"})
    exec(file.read_text(encoding="ascii"))
    assert os.environ == {"DVC_SITE_CACHE_DIR": "mine"}
