"""Inject faults into runs of the pipeline at tiny settings: ``make faults``.

    python -m tests.faults [--only KIND …] [--driver DRIVER …] [--trials N] [--seed N] [--anew] [--work FOLDER]
                          [--no-report]

Each trial runs the pipeline by ``make repro``'s program, ``dvc repro`` or the Prefect flow, injects a fault, and runs
the same command again, which has to end with the files of an undisturbed run. A stopped campaign is resumed. Its tables
are reports/faults.csv and reports/faults.md.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from pipeline.tracking.experiment import open_store
from tests.faults.bench import DRIVERS
from tests.faults.plan import KINDS, Row, trials, try_it
from tests.faults.tables import write_tables
from tests.project import ROOT, Project
from tests.tiny_project import make_project

WORK = ROOT / ".flowtune" / "faults"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__, formatter_class=_Raw)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--driver", nargs="+", choices=list(DRIVERS), default=list(DRIVERS), metavar="DRIVER")
    parser.add_argument("--trials", type=int, help="of each kind; default: those of the whole campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--anew", action="store_true", help="forget the trials of a campaign that was stopped")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the throw-away projects")
    parser.add_argument("--no-report", action="store_true", help="leave the tables in reports/ as they are")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    kept = given.work / f"rows-{given.seed}.jsonl"
    if given.anew:
        kept.unlink(missing_ok=True)
    made = undisturbed(given.work)
    rows = [Row(**json.loads(line)) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    done = {(row.kind, row.number) for row in rows}
    planned = trials({kind: given.trials or KINDS[kind][1] for kind in given.only})
    planned = [trial for trial in planned if trial.driver in given.driver]
    waiting = [trial for trial in planned if (trial.kind, trial.number) not in done]
    with prefect_server(any(trial.driver == "Prefect flow" for trial in waiting)) as env, tqdm(waiting) as bar:
        for trial in bar:
            bar.set_postfix_str(f"{trial.name}, {trial.driver}")
            row = try_it(trial, made, given.work, given.seed, env)
            rows.append(row)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            if row.verdict != "survived":
                tqdm.write(f"{trial.name}, {trial.driver}, {row.what or trial.variant}: {row.verdict}", file=sys.stderr)
    chosen = {(trial.kind, trial.number) for trial in planned}
    rows = sorted((row for row in rows if (row.kind, row.number) in chosen), key=lambda row: (row.kind, row.number))
    if not given.no_report:
        write_tables(rows, given.seed)
    return int(any(row.verdict != "survived" and not row.verdict.startswith("skipped") for row in rows))


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def undisturbed(work: Path) -> Project:
    """Return the project after an undisturbed run; make it again if the code has changed since."""
    root, done = work / "made", work / "made.done"
    code = _digest()
    if not (done.exists() and done.read_text(encoding="utf-8") == code):
        for folder in (root, work / "mlflow", work / "mlflow_root"):
            shutil.rmtree(folder, ignore_errors=True)
        print("an undisturbed run, to compare with", file=sys.stderr)
        make_project(root).check("pipeline.orchestration.repro")
        open_store(work / "mlflow_root")
        (work / "mlflow_root" / ".flowtune").rename(work / "mlflow")
        done.write_text(code, encoding="utf-8")
    return Project(root)


def _digest() -> str:
    from pipeline.utils.provenance import hash_files

    tests = (ROOT / "tests" / name for name in ("project.py", "tiny_project.py"))
    return hash_files([ROOT / "pipeline", ROOT / "stages", ROOT / "dvc.yaml", *tests])


@contextmanager
def prefect_server(wanted: bool) -> Iterator[dict[str, str]]:
    """Run a Prefect server if it is wanted; yield the environment variables with which flows find it."""
    if not wanted:
        yield {}
        return
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


if __name__ == "__main__":
    sys.exit(main())
