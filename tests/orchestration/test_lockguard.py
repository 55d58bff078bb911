"""Repair of a truncated dvc.lock, without undoing other changes."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.orchestration import lockguard
from pipeline.utils import platform
from tests.project import wait_for

HEAD = "schema: '2.0'\nstages:\n"


def entry(name: str, digest: str) -> str:
    return f"  {name}:\n    cmd: exec python -m stages.{name}\n    outs:\n    - path: {name}.txt\n      md5: {digest}\n"


BEFORE = HEAD + entry("a", "old") + entry("b", "old") + entry("c", "old")
AFTER = HEAD + entry("a", "new") + entry("b", "old") + entry("c", "old")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.lock").write_text(BEFORE, encoding="utf-8")
    lockguard.keep(tmp_path)
    return tmp_path


def test_truncated_lock_is_restored_and_keeps_complete_new_entries(root: Path) -> None:
    for length in range(len(AFTER)):
        (root / "dvc.lock").write_text(AFTER[:length], encoding="utf-8")
        assert lockguard.mend(root, os.getpid()) == [root / "dvc.lock"]
        new = AFTER[:length].count("\n  b:\n") == 1
        assert (root / "dvc.lock").read_text(encoding="utf-8") == (AFTER if new else BEFORE), length


@pytest.mark.parametrize("text", [HEAD + entry("a", "other"), AFTER, AFTER + entry("d", "new")])
def test_complete_lock_is_left_alone(root: Path, text: str) -> None:
    (root / "dvc.lock").write_text(text, encoding="utf-8")
    assert lockguard.mend(root) == []
    assert (root / "dvc.lock").read_text(encoding="utf-8") == text


def test_lock_is_restored_from_its_copy_on_a_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    (root / "dvc.lock").write_text("", encoding="utf-8")
    monkeypatch.setattr(lockguard, "write_text", full)
    lockguard.mend(root)
    assert (root / "dvc.lock").read_text(encoding="utf-8") == BEFORE


def test_rwlock_loses_entries_of_dead_processes_and_is_deleted_if_truncated(tmp_path: Path) -> None:
    held = tmp_path / ".dvc" / "tmp" / "rwlock"
    held.parent.mkdir(parents=True)
    dead = subprocess.Popen(["true"])  # becomes a zombie: nothing reads its exit code
    wait_for(lambda: not platform.is_at_work(dead.pid), "the process to end")
    one, zombie, other = ({"pid": pid, "cmd": "dvc repro"} for pid in (os.getppid(), dead.pid, os.getpid()))
    whole = {"write": {"out": one, "else": other}, "read": {"in": [one, zombie, other], "alone": [one]}}
    left = {"write": {"else": other}, "read": {"in": [other]}}
    for text, expected in ((json.dumps(whole), left), ('{"read": {', None)):
        held.write_text(text, encoding="utf-8")
        lockguard.mend(tmp_path, os.getppid())
        assert (json.loads(held.read_text(encoding="utf-8")) if held.exists() else None) == expected


def test_guard_repairs_the_lock_after_dvc_is_killed_and_exits(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    lock = tmp_path / "dvc.lock"
    lock.write_text(BEFORE, encoding="utf-8")
    dvc = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    for _ in range(2):  # as two of its stages do
        lockguard.guard(tmp_path, dvc.pid)
    sign = tmp_path / lockguard.KEPT / f"{dvc.pid}.guard"
    wait_for(sign.exists, "the guard to be at work")
    lock.write_text(AFTER[:50], encoding="utf-8")
    dvc.kill()
    dvc.wait()
    wait_for(lambda: not sign.exists(), "the guard to end")
    assert lock.read_text(encoding="utf-8") == BEFORE
