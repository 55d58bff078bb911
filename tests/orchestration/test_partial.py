"""Partial tables after a failed run: in their own folder, and from new results only."""

import json
from pathlib import Path

import pytest

from pipeline.orchestration.partial import make_partial, remove_partial

UNMADE = {
    "outs": ["data/starter/b.npz", "reports/starter/episodes/b.csv", "reports/starter/table2.csv"],
    "commands": {
        "draw@starter": "exec python -m stages.report draw --scale starter",
        "evaluate_rollouts@b": "exec python -m stages.evaluate --task b",
        "tabulate@starter": "exec python -m stages.report tabulate --scale starter",
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "reports" / "starter" / "episodes").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("scale: starter", encoding="utf-8")
    (tmp_path / "unmade.json").write_text(json.dumps(UNMADE), encoding="utf-8")
    for name in ("episodes/a.csv", "episodes/b.csv", "table2.csv"):
        (tmp_path / "reports" / "starter" / name).write_text("whole", encoding="utf-8")
    return tmp_path


def test_partial_tables_use_only_new_results_and_keep_complete_tables(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(module: list[str], folder: Path) -> None:
        ran.append(" ".join(module))
        reports = folder / "reports" / "starter"
        assert (folder / "params.yaml").read_text(encoding="utf-8") == "scale: starter"
        assert [path.name for path in (reports / "episodes").iterdir()] == ["a.csv"]
        if module[1] == "tabulate":
            assert not (reports / "table2.csv").exists()
            (reports / "table2.csv").write_text("partial", encoding="utf-8")

    for _ in range(2):  # the second call replaces the result of the first
        ran.clear()
        make_partial(root, "starter", "partial", root / "unmade.json", run)
        assert ran == ["stages.report tabulate --scale starter", "stages.report draw --scale starter"]
    reports = root / "reports" / "starter"
    assert (
        (reports / "table2.csv").read_text(encoding="utf-8")
        == (reports / "episodes" / "b.csv").read_text(encoding="utf-8")
        == "whole"
    )
    partial = reports / "partial"
    assert {path.name: path.read_text(encoding="utf-8") for path in partial.iterdir()} == {"table2.csv": "partial"}
    assert not (root / ".flowtune" / "partial").exists()
    assert capsys.readouterr().err.count("reports/starter keeps those of the last complete run\n") == 2

    remove_partial(root, "starter", "partial")
    assert not partial.exists() and (reports / "table2.csv").exists()
    remove_partial(root, "starter", "partial")
    output = capsys.readouterr().out
    assert output == "reports/starter/partial: removed, the tables in reports/starter are complete\n"


def test_no_partial_folder_without_unmade_tables(root: Path) -> None:
    (root / "unmade.json").write_text(
        json.dumps({"outs": ["reports/starter/episodes/b.csv"], "commands": {}}), encoding="utf-8"
    )
    make_partial(root, "starter", "partial", root / "unmade.json", lambda *_: pytest.fail("ran"))
    assert not (root / "reports" / "starter" / "partial").exists()
