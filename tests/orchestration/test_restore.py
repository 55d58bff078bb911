"""Restoring reports after a stage fails or is killed."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.orchestration.restore import kept_reports, note_stage, put_back
from pipeline.utils.code_deps import ROOT
from tests.project import commit_all

TABLE, DATA = Path("reports/starter/table.csv"), Path("data/model")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with a committed table."""
    monkeypatch.chdir(tmp_path)
    for path, text in ((TABLE, "committed"), (DATA, "weights")):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    commit_all(tmp_path)
    return tmp_path


def remember(root: Path, text: str) -> None:
    """Put a table with ``text`` into DVC's lock and cache."""
    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    place = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    place.parent.mkdir(parents=True)
    place.write_text(text, encoding="utf-8")
    entry = f"    - path: {TABLE}\n      hash: md5\n      md5: {digest}\n      size: {len(text)}\n"
    (root / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  a:\n    outs:\n{entry}", encoding="utf-8")


@pytest.mark.parametrize("cached", [False, True])
def test_failed_stage_leaves_the_last_good_reports(root: Path, cached: bool) -> None:
    if cached:
        remember(root, "newer")
    TABLE.unlink()  # as DVC does
    with pytest.raises(KeyError), kept_reports(root, "tabulate", [TABLE, DATA]):
        DATA.unlink()
        raise KeyError
    assert TABLE.read_text(encoding="utf-8") == ("newer" if cached else "committed")
    assert not DATA.exists()  # not a report: the next run makes it
    assert put_back(root) == []


def test_new_reports_are_kept_and_obsolete_ones_stay_deleted(root: Path) -> None:
    TABLE.unlink()
    with kept_reports(root, "tabulate", [TABLE]):
        pass
    assert put_back(root) == []
    assert not TABLE.exists()
    with pytest.raises(KeyError), kept_reports(root, "tabulate", [TABLE]):
        TABLE.write_text("made", encoding="utf-8")
        raise KeyError
    assert TABLE.read_text(encoding="utf-8") == "made"


def test_reports_that_dvc_removed_before_the_program_started_are_restored(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(root, "newer")
    TABLE.unlink()
    note_stage(root, "dvc.yaml:a")
    assert put_back(root) == [root / TABLE]
    assert TABLE.read_text(encoding="utf-8") == "newer"

    note_stage(root, "a")
    monkeypatch.setenv("DVC_STAGE", "a")
    with kept_reports(root, "work", []):  # the stage has no report any more
        TABLE.unlink()
    assert put_back(root) == []


def test_reports_of_a_killed_stage_are_restored_by_another_process(root: Path) -> None:
    program = f"""
import pathlib, os, signal
from pipeline.orchestration.restore import kept_reports
with kept_reports(pathlib.Path({str(root)!r}), "tabulate", [pathlib.Path({str(TABLE)!r})]):
    pathlib.Path({str(TABLE)!r}).unlink()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not TABLE.exists()
    assert put_back(root) == [root / TABLE]
    assert TABLE.read_text(encoding="utf-8") == "committed"
