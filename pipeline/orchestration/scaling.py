"""Measure how the cost of a pool grows with workers, runs and stages (reports/scaling.csv and .md, docs/scaling.md).

    python -m pipeline.orchestration.scaling

Three parts, each with its own folders and servers: a remote's run cache by its number of runs, MLflow's store by its
number of runs, and sleeping stages on 1, 2 and 4 workers (``scaling_pool``). Seconds are processor time unless a row
says otherwise, so that other load on the machine changes them little.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

import pandas as pd
from dvc.repo import Repo
from dvc.stage.cache import StageCache
from dvc_data.hashfile.db import get_odb
from tqdm import tqdm

from pipeline.orchestration.run_cache import RunCache, runs_in
from pipeline.orchestration.scaling_pool import Row, measure_pool
from pipeline.reporting.tables import markdown_table
from pipeline.tracking.mlflow_run import begin
from pipeline.tracking.run import PROCESS, Start, now
from pipeline.utils.atomic import write_text
from pipeline.utils.processes import identity
from pipeline.utils.provenance import hardware

RUN_CACHE_SIZES = (100, 1000, 10_000)
MLFLOW_SIZES = (10, 100, 400)
WORKERS = (1, 2, 4)
_LATEST = 5
"""Number of latest MLflow runs whose median is taken at each size."""

_ENTRY = """\
cmd: exec python -m stages.evaluate --scale lab --task pusht --method ft_fm --nfe 1
deps:
- path: data/inputs/lab/evaluate_rollouts-pusht-ft_fm-nfe1.json
  hash: md5
  md5: aebb2af2304f90bcfed8ac046ae75de7
  size: 2875
outs:
- path: reports/lab/episodes/pusht-ft_fm-nfe1.csv
  hash: md5
  md5: aebb2af2304f90bcfed8ac046ae75de7
  size: 41562
"""


def measure_run_cache(sizes: Sequence[int]) -> Iterator[Row]:
    """Yield the seconds that a remote folder with so many runs costs at each pull and each push."""
    with tempfile.TemporaryDirectory() as folder, Repo.init(folder, no_scm=True) as repo:
        here = repo.cache.legacy
        remote = get_odb(here.fs, str(Path(folder, "remote")), hash_name=here.hash_name)
        ours, dvcs = RunCache(repo), StageCache(repo)
        for size in tqdm(sizes, desc="run cache", unit="size"):
            _fill(Path(remote.path, "runs"), size)
            ours.transfer(remote, here)
            works: dict[str, Callable[[], object]] = {
                "list": lambda: runs_in(remote),
                "take what is new: nothing": lambda: ours.transfer(remote, here),
                "take all, as DVC's own does": lambda: dvcs.transfer(remote, here),
            }
            for name, work in works.items():
                yield Row("run cache", "runs at the remote", size, name, _seconds(work), "s")


def _fill(runs: Path, size: int) -> None:
    for number in range(size):
        key = hashlib.sha256(str(number).encode()).hexdigest()
        file = runs / key[:2] / key / hashlib.sha256(key.encode()).hexdigest()
        if not file.exists():
            file.parent.mkdir(parents=True)
            file.write_text(_ENTRY, encoding="utf-8")


def _seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def measure_mlflow(sizes: Sequence[int]) -> Iterator[Row]:
    """Yield the seconds to record one stage in an SQLite store with so many runs of one repro."""
    with tempfile.TemporaryDirectory() as folder:
        taken: list[float] = []
        for number in tqdm(range(max(sizes) + 1), desc="MLflow", unit="run", mininterval=5):
            if number in sizes:
                value = median(taken[-_LATEST:])
                yield Row("MLflow", "runs in the store", number, "record a stage", value, "s")
            taken.append(_seconds(partial(_record, Path(folder), number)))


def _record(root: Path, number: int) -> None:
    start = Start(
        "evaluate", "repro", now(), {"lr": str(number)}, {"stage": "evaluate", PROCESS: identity(os.getpid())}
    )
    run = begin(root, start)
    for step in range(10):
        run.log({"score": step / 10}, step)
    run.close("FINISHED")


PARTS: Mapping[str, Callable[[argparse.Namespace], Iterable[Row]]] = {
    "run cache": lambda _: measure_run_cache(RUN_CACHE_SIZES),
    "MLflow": lambda _: measure_mlflow(MLFLOW_SIZES),
    "pool": lambda given: chain.from_iterable(measure_pool(workers, given.stages, given.sleep) for workers in WORKERS),
}


def table_of(rows: Iterable[Row]) -> pd.DataFrame:
    """Return the rows with the machine and its current load average."""
    return pd.DataFrame(rows).assign(machine=hardware(), load=round(os.getloadavg()[0], 1)).round({"value": 4})


def write(folder: Path, table: pd.DataFrame) -> None:
    """Write ``scaling.csv``, which keeps its rows of other parts, and ``scaling.md`` from all rows."""
    path = folder / "scaling.csv"
    if path.exists():
        before = pd.read_csv(path)
        table = pd.concat([before[~before["part"].isin(table["part"])], table], ignore_index=True)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    texts = [_ABOUT]
    for part, rows in table.groupby("part", sort=False):
        wide = rows.pivot_table(index=["quantity", "unit"], columns="size", values="value", sort=False)
        texts.append(f"## {part}\n\n{rows['machine'].iloc[0]}; load average {rows['load'].max():g}.\n")
        lines = ([", ".join(row[0]), *(f"{value:.3g}" for value in row[1:])] for row in wide.itertuples())
        texts.append(markdown_table(lines, [f"by {rows['size_of'].iloc[0]}", *map(str, wide.columns)]) + "\n")
    write_text(folder / "scaling.md", "\n".join(texts))


_ABOUT = """\
# How the cost of a pool grows

`python -m pipeline.orchestration.scaling` measures this. Seconds are of processor time, of all processes that took
part, unless `wall` is said; a load average above the number of cores says that other work ran beside it. The remote is
a folder; Prefect's and MLflow's stores are SQLite files. [What follows for 100 workers](../docs/scaling.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"some of {', '.join(PARTS)}; default: all")
    parser.add_argument("--stages", type=int, default=8, help="number of sleeping stages in the pool part")
    parser.add_argument("--sleep", type=float, default=60, help="seconds that each of these stages takes")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"parts: given {', '.join(sorted(unknown))}, allowed: {', '.join(PARTS)}")
    for part in arguments.parts:
        write(Path("reports"), table_of(PARTS[part](arguments)))


if __name__ == "__main__":
    main()
