"""The fault campaign: one trial, and its detection of damage and of orphan processes."""

from pathlib import Path

import pytest

from tests.faults.bench import Bench, entries, make_bench, outs
from tests.faults.plan import KINDS, Row, Trial, trials, try_it
from tests.faults.tables import markdown
from tests.project import Project

STAGE = "tabulate@starter"


@pytest.fixture
def bench(made: Project, tmp_path: Path) -> Bench:
    return make_bench(made, tmp_path / "project", [STAGE], {})


def test_killed_run_is_survived(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.plan.window", lambda *_: [STAGE])
    monkeypatch.setattr("tests.faults.plan.GUESS_S", 4.0)
    row = try_it(Trial("kill", "SIGKILL driver", "make repro", 0), made, tmp_path, seed=3, env={})
    assert row.verdict == "survived" and row.what.startswith("SIGKILL to pipeline.orchestration.repro")


def test_stale_stage_is_a_difference_but_no_damage(bench: Bench) -> None:
    assert bench.damaged() == []
    assert bench.different() == ["dvc.lock"]
    assert STAGE in bench.project.check("dvc", "status", STAGE).stdout


@pytest.mark.parametrize("harm", ["lost", "half", "lock", "settings"])
def test_damage_is_detected(bench: Bench, harm: str) -> None:
    root = bench.project.root
    report = root / "reports" / "starter" / "table2.csv"
    if harm == "lost":
        report.unlink()
    elif harm == "half":
        report.write_bytes(report.read_bytes()[:3])
    elif harm == "lock":
        report = root / "dvc.lock"
        report.write_text(report.read_text(encoding="utf-8")[:5000], encoding="utf-8")
    else:
        report = root / "params.yaml"
        report.write_text("", encoding="utf-8")
    assert bench.damaged() == [str(report.relative_to(root))]


def test_orphan_process_is_detected_and_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.bench.GONE_S", 0.1)
    left = bench.project.start("timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)")
    (found,) = bench.orphans()
    assert "time.sleep(60)" in found and left.wait() < 0


def test_outputs_are_read_from_lock_entries(made: Project) -> None:
    entry = entries(made.root / "dvc.lock")[STAGE]
    assert outs(entry) == ["reports/starter/table2.csv", "reports/starter/table2.md"]


def test_every_driver_gets_every_variant() -> None:
    for kind, (variants, _) in KINDS.items():
        planned = trials({kind: 3 * len(variants)})
        pairs = {(trial.variant, trial.driver) for trial in planned}
        assert len(pairs) == 3 * len(set(variants))


def test_report_counts_and_lists_failed_trials() -> None:
    good = Row("kill", 0, "SIGKILL driver", "make repro", "resolve", "SIGKILL at 1 s", -9, verdict="survived")
    bad = Row("disk", 1, "training", "dvc repro", "pretrain", "no room", 1, "error: full", verdict="a traceback")
    text = markdown([good, bad], 0, "a machine")
    assert "1 of 2 trials" in text and "| disk 1 | dvc repro | no room | a traceback |" in text
    assert "| 1 of 1 | — | — |" in text and "| — | 0 of 1 | — |" in text
