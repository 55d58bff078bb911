"""The commit of a result is that of the project's own repository, however git is set up."""

import subprocess
from pathlib import Path

import pytest

from pipeline.utils.provenance import git_commit, git_dirty

GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "code.py").write_text("", encoding="utf-8")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"]):
        subprocess.run([*GIT, *arguments], cwd=root, check=True)
    return root


def test_commit_and_uncommitted_changes_are_reported(repository: Path) -> None:
    commit = git_commit(repository)
    assert len(commit) == 40
    assert not git_dirty(repository)
    (repository / "code.py").write_text("1\n", encoding="utf-8")
    assert git_dirty(repository)
    subprocess.run([*GIT, "worktree", "add", "-q", "--detach", str(repository.parent / "tree")], cwd=repository)
    assert git_commit(repository.parent / "tree") == commit


def test_a_repository_of_another_user_is_read(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git_commit(repository)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for tests of its refusal
    refused = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, check=False)
    assert refused.returncode != 0
    assert git_commit(repository) == commit


def test_without_repository_commit_or_git_there_is_none(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = repository / "unpacked"  # the enclosing repository's commit is not its own
    inside.mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    subprocess.run([*GIT, "init", "-q"], cwd=empty, check=True)
    assert {git_commit(inside), git_commit(empty), git_commit(tmp_path)} == {"none"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(repository) == "none"
    assert not git_dirty(repository)
