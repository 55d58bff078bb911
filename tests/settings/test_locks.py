"""The lock of the current scale is dvc.lock; those of other scales lie beside their reports."""

from pathlib import Path

import pytest

from pipeline.settings.locks import arrange_locks, kept_lock, require_lock_of
from pipeline.utils.errors import UserError

HEAD = "schema: '2.0'\nstages:\n"


def entry(name: str, value: str = "a") -> str:
    return f"  {name}:\n    cmd: run\n    outs:\n    - path: {value}\n"


RESOLVE, STARTER, LAB = entry("resolve"), entry("fetch@starter-pusht"), entry("fetch@lab-pusht") + entry("draw@lab")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.lock").write_text(HEAD + RESOLVE + STARTER, encoding="utf-8")
    kept_lock(tmp_path, "lab").parent.mkdir(parents=True)
    kept_lock(tmp_path, "lab").write_text(HEAD + LAB, encoding="utf-8")
    return tmp_path


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_switching_scale_and_back_restores_the_locks(root: Path) -> None:
    arrange_locks(root, "lab")
    assert read(kept_lock(root, "starter")) == HEAD + STARTER
    assert set(read(root / "dvc.lock").splitlines()) == set((HEAD + RESOLVE + LAB).splitlines())
    assert not kept_lock(root, "lab").exists()
    arrange_locks(root, "starter")
    assert read(kept_lock(root, "lab")) == HEAD + LAB
    assert set(read(root / "dvc.lock").splitlines()) == set((HEAD + RESOLVE + STARTER).splitlines())
    assert not kept_lock(root, "starter").exists()


@pytest.mark.parametrize("done", [1, 2, 3])
def test_interrupted_switch_loses_no_entry(root: Path, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    from pipeline.settings import locks

    written = 0

    def write(path: Path, stages: dict[str, str]) -> None:
        nonlocal written
        written += 1
        if written == done:
            raise KeyboardInterrupt
        original(path, stages)

    original = locks._write
    monkeypatch.setattr(locks, "_write", write)
    try:
        arrange_locks(root, "lab")
    except KeyboardInterrupt:
        monkeypatch.setattr(locks, "_write", original)
        arrange_locks(root, "lab")
    assert read(kept_lock(root, "starter")) == HEAD + STARTER
    assert set(read(root / "dvc.lock").splitlines()) == set((HEAD + RESOLVE + LAB).splitlines())


def test_scale_whose_lock_is_stored_away_is_refused(root: Path) -> None:
    require_lock_of(root, "starter")
    require_lock_of(root, "paper")  # has no lock
    with pytest.raises(UserError, match=r"given 'lab', but dvc\.lock holds another scale and reports/lab/dvc\.lock"):
        require_lock_of(root, "lab")
