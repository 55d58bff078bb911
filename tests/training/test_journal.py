"""The training log survives a kill and comes out as CSV."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.training.journal import TrainingLog


class Recorder:
    def __init__(self) -> None:
        self.shown: list[tuple[dict[str, float], int | None]] = []

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.shown.append((dict(metrics), step))


def test_rows_are_logged_kept_and_written_in_step_order(tmp_path: Path) -> None:
    sink = Recorder()
    log = TrainingLog(tmp_path / "resume" / "log.jsonl", sink)
    log({"loss": 0.5}, 20)
    log({"loss": 0.1 + 0.2}, 10)
    log.write_csv(tmp_path / "log.csv", scale="starter", task="pusht")
    expected = "scale,task,step,loss\nstarter,pusht,10,0.30000000000000004\nstarter,pusht,20,0.5\n"
    assert (tmp_path / "log.csv").read_text(encoding="utf-8") == expected
    assert sink.shown == [({"loss": 0.5}, 20), ({"loss": 0.1 + 0.2}, 10)]


def test_torn_last_line_is_ignored_and_a_repeated_step_replaces_its_row(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = TrainingLog(path, Recorder())
    log({"loss": 3.0}, 10)
    whole_first = len(path.read_text(encoding="utf-8"))
    log({"loss": 2.0}, 20)
    text = path.read_text(encoding="utf-8")
    for end in range(whole_first, len(text) + 1):
        path.write_text(text[:end], encoding="utf-8")
        resumed = TrainingLog(path, Recorder())
        assert set(resumed.rows) == ({10, 20} if end == len(text) else {10})
        resumed({"loss": 2.5}, 20)
        resumed({"loss": 1.0}, 30)
        again = TrainingLog(path, Recorder())
        assert {step: row["loss"] for step, row in again.rows.items()} == {10: 3.0, 20: 2.5, 30: 1.0}
