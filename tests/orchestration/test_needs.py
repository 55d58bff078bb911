"""The table of the memory that stages need, and the waiting of stages for memory."""

from pathlib import Path

import pytest

from pipeline.orchestration import needs
from pipeline.orchestration.needs import Need, Room, need_of, read_table, write_table
from pipeline.orchestration.plan import Program
from pipeline.settings.kinds import KINDS
from pipeline.utils.errors import UserError
from tests.project import ROOT, Project

GB = 10**9
TABLE = [
    Need("finetune", "lab", "pusht", 900, 2, "a machine"),
    Need("finetune", "starter", "pusht", 700, 4, "a machine"),
    Need("pretrain", "starter", "pusht", 400, 1, "a machine"),
    Need("tabulate", "starter", "", 200, 1, "a machine"),
]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("finetune --scale starter --task pusht --method fm --nfe 1", 700),
        ("report tabulate --scale starter", 200),
        ("finetune --scale paper --task kitchen", 900),  # the maximum of the same program
        ("certify --scale starter --task pusht", 900),  # the maximum of all programs
    ],
)
def test_memory_need_falls_back_to_the_most_similar_measurement(command: str, expected: int) -> None:
    module, *arguments = command.split()
    assert need_of([Program(f"stages.{module}", arguments)], TABLE) == expected * 10**6


def test_foreign_command_needs_no_memory() -> None:
    assert need_of([], TABLE) == 0


def test_table_round_trips_and_is_updated_by_row(tmp_path: Path) -> None:
    path = tmp_path / "needs.csv"
    write_table(TABLE, path)
    assert read_table(path) == TABLE
    write_table([Need("pretrain", "starter", "pusht", 300, 3, "another")], path)
    assert read_table(path) == [*TABLE[:2], Need("pretrain", "starter", "pusht", 300, 3, "another"), TABLE[3]]


def test_committed_table_names_existing_programs() -> None:
    rows = read_table()
    assert rows and {row.program for row in rows} <= {*KINDS, *(path.stem for path in (ROOT / "stages").glob("*.py"))}
    assert min(row.peak_mb for row in rows) > 10 and min(row.runs for row in rows) > 0


class Machine:
    """Mocked free memory, and the memory that running stages hold, in GB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = self.held = 0.0
        monkeypatch.setattr(needs, "free_memory", lambda: int(self.free * GB))
        monkeypatch.setattr(needs, "resident", lambda _: int(self.held * GB))


def test_stage_waits_for_memory_that_running_stages_will_still_take(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    room = Room({"large": 2 * GB, "small": GB // 2, "free": 0})
    assert room.lack("large", []) is None  # a stage alone always starts
    running = ["large"]
    machine.free, machine.held = 2.0, 0.2  # the running stage will take 1.8 GB more
    assert room.lack("small", running) == "waits for memory: it needs 0.5 GB, and 0.2 GB are free beside large"
    assert room.lack("free", running) is None
    machine.free, machine.held = 0.6, 2.5  # above its measured need
    assert room.lack("small", running) is None
    machine.free, machine.held = 0.1, 0.2
    assert "and 0.0 GB are free" in str(room.lack("small", running))


def test_table_is_built_from_recorded_runs(sources: Project, tmp_path: Path, database: bytes) -> None:
    project = sources.copy(tmp_path / "project")
    refused = project.run("pipeline.orchestration.needs")
    assert (refused.returncode, refused.stdout) == (1, "") and "run `make repro` first" in refused.stderr
    before = (project.root / "pipeline" / "orchestration" / "needs.csv").read_text(encoding="utf-8")
    project.keep_stages("resolve", "fetch", "tabulate_settings")
    project.put_database(database)
    project.check("pipeline.orchestration.repro", "--jobs", "2", FLOWTUNE_TRACKING="on")
    project.recorded()
    project.check("pipeline.orchestration.needs")
    rows = {
        (row.program, row.task): row for row in read_table(project.root / "pipeline" / "orchestration" / "needs.csv")
    }
    for key in (("tabulate_settings", ""), ("fetch", "pusht")):
        assert rows[key].scale == "starter" and rows[key].runs == 1 and 50 < rows[key].peak_mb < 3000
        assert "cores" in rows[key].machine
    assert len(rows) >= len(before.splitlines()) - 1


def test_missing_runs_give_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MLflow has no recorded memory of stages"):
        needs.measured(tmp_path)
