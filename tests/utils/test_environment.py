"""The environment of this project's programs: caches inside the project, loopback past proxies, mirrors of the root."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.closure import ROOT
from pipeline.utils.environment import CACHES, variables


def test_every_cache_is_in_the_project_whatever_was_set(tmp_path: Path) -> None:
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
def test_loopback_is_added_to_what_goes_past_a_proxy(inherited: dict[str, str], hosts: str, tmp_path: Path) -> None:
    found = variables(tmp_path, inherited)
    assert found["no_proxy"] == found["NO_PROXY"] == hosts


@pytest.mark.parametrize(("given", "meant"), [("data/mirror", "data/mirror"), ("../mirror", "../mirror")])
def test_a_relative_mirror_is_relative_to_the_root(given: str, meant: str, tmp_path: Path) -> None:
    assert variables(tmp_path, {"FLOWTUNE_MIRROR": given})["FLOWTUNE_MIRROR"] == str(tmp_path / meant)


def test_an_absolute_mirror_stays_and_none_is_made_up(tmp_path: Path) -> None:
    assert variables(tmp_path, {"FLOWTUNE_MIRROR": "/data/mirror"})["FLOWTUNE_MIRROR"] == "/data/mirror"
    assert "FLOWTUNE_MIRROR" not in variables(tmp_path, {"FLOWTUNE_MIRROR": ""})


def test_dvc_is_told_where_there_is_no_git(tmp_path: Path) -> None:
    assert Path(variables(tmp_path, {})["DVC_SYSTEM_CONFIG_DIR"]) == tmp_path / ".dvc" / "no_git"
    (tmp_path / ".git").mkdir()
    assert "DVC_SYSTEM_CONFIG_DIR" not in variables(tmp_path, {})


def test_programs_run_in_it_and_whoever_imports_the_library_keeps_their_own(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    shutil.copy(ROOT / "pipeline" / "__init__.py", tmp_path / "pipeline")
    shutil.copytree(ROOT / "pipeline" / "utils", tmp_path / "pipeline" / "utils")
    show = "import os, pipeline; print(os.environ.get('MPLCONFIGDIR'))"
    for program in ("pipeline/program.py", "own.py"):
        (tmp_path / program).write_text(show, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in (*CACHES, "FLOWTUNE_ROOT")}

    def told(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=kept, stdout=subprocess.PIPE, check=True).stdout.decode()

    assert told("-m", "pipeline.program") == f"{tmp_path / '.flowtune' / 'matplotlib'}\n"
    assert told("-m", "own") == told("own.py") == told("-c", show) == "None\n"
