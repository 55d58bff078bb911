"""Run all comparisons against other tools: reports/benchmarks.csv, .md, .png and .svg.

    python -m pipeline.perf.suite [WORD …]

Measures this machine's rows with one of the words in their work or peer; without words, all. Rows of other machines
stay as they are.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

from pipeline.perf import loading, pairs, plans, simulation, solves, startup, updates
from pipeline.perf.comparison import Comparison, DiffersError, Row, hold, machine
from pipeline.reporting.figures import drawing
from pipeline.reporting.tables import markdown_table
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import cores
from pipeline.utils.precision import native

FAMILIES: tuple[Callable[[], Iterator[Comparison]], ...] = (
    updates.unet1d_comparisons,
    updates.unet2d_comparisons,
    pairs.comparisons,
    updates.mle_comparisons,
    solves.adaptive_comparisons,
    solves.sampling_comparisons,
    plans.comparisons,
    simulation.step_comparisons,
    simulation.pusht_comparisons,
    simulation.mujoco_comparisons,
    simulation.robomimic_comparisons,
    loading.comparisons,
    startup.comparisons,
)
VERSIONS = ("torch", "torchcfm", "torchdiffeq", "diffusers", "POT", "gymnasium", "gym-pusht", "robomimic", "dvc")
COLUMNS = [field.name for field in fields(Row)]


def measure(words: Sequence[str] = (), families: Sequence[Callable[[], Iterator[Comparison]]] = FAMILIES) -> list[Row]:
    """Time all comparisons, or those named by ``words``; leave out those with different results, with a message."""
    rows = []
    with tqdm(desc="benchmarks", unit="comparison") as bar:
        for family in families:
            for comparison in family():
                if words and not any(word in f"{comparison.work} {comparison.peer}" for word in words):
                    continue
                bar.set_postfix_str(comparison.work)
                try:
                    rows.append(hold(comparison))
                except DiffersError as error:
                    bar.write(f"{comparison.work}, {comparison.peer}: left out: {error}")
                bar.update()
    return rows


def merged(path: Path, rows: Sequence[Row], *, all_anew: bool) -> pd.DataFrame:
    """Return the table at ``path``, if it exists, with ``rows`` in place of this machine's.

    Args:
        all_anew: whether to drop every row of this machine; else only those measured again.
    """
    table = pd.DataFrame([asdict(row) for row in rows], columns=COLUMNS)
    if not path.exists():
        return table
    before = pd.read_csv(path)
    again = _keys(before).isin(_keys(table))
    dropped = (before["machine"] == machine()) if all_anew else again
    return pd.concat([table, before[~dropped]], ignore_index=True)


def _keys(table: pd.DataFrame) -> pd.Series:
    """Return the identity of each row: work, peer and machine; all time limits are the same peer."""
    peer = table["peer"].str.replace(r"^limit of .*", "limit", regex=True)
    return pd.Series(list(zip(table["work"], peer, table["machine"], strict=True)), index=table.index, dtype=object)


def write(folder: Path, table: pd.DataFrame, about: str) -> None:
    """Write ``benchmarks.csv``, ``.md``, ``.png`` and ``.svg``."""
    table = table.round({"ours_ms": 3, "peer_ms": 3, "ratio": 3, "ratio_low": 3, "ratio_high": 3, "floor_ms": 3})
    write_csv(folder / "benchmarks.csv", table)
    texts = []
    for name, rows in table.groupby("machine", sort=False):
        texts.append(f"\n## {name}\n\n{markdown_table(map(_line, rows.itertuples()))}\n")
        missed = rows[(rows["ratio"] > rows["aim"]) & rows["floor_ms"].notna()]
        if len(missed):
            texts.append(f"{_FLOORS}\n{markdown_table(map(_floor, missed.itertuples()))}\n")
    write_text(folder / "benchmarks.md", about + "".join(texts))
    draw(table, folder / "benchmarks")


def _line(row: Any) -> dict[str, str]:
    return {
        "work": row.work,
        "peer": row.peer,
        "ours": _duration(row.ours_ms),
        "peer's": _duration(row.peer_ms),
        "ratio (quartiles)": f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})",
        "aim": f"{row.aim:g}",
        "met": "yes" if row.ratio <= row.aim else "no",
        "same result": row.same_result,
    }


def _floor(row: Any) -> dict[str, str]:
    share = row.floor_ms / row.peer_ms
    return {
        "work": row.work,
        "peer": row.peer,
        "ratio, aim": f"{row.ratio:.2f}, {row.aim:g}",
        "floor": row.floor,
        "its time": _duration(row.floor_ms),
        "over the peer's": f"{share:.2f}",
        "ours over it": f"{row.ours_ms / row.floor_ms:.2f}",
        "aim in reach": "no" if share > row.aim else "not ruled out",
    }


def _duration(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw each row's ratio with its quartiles, a colour for each machine, and its aim, on a logarithmic axis.

    Args:
        path: the figure's path without ``.png`` and ``.svg``.
    """
    rows = table[["work", "peer"]].drop_duplicates()
    labels = [f"{row.work}\nagainst {row.peer}" for row in rows.itertuples()]
    place = {key: float(k) for k, key in enumerate(rows.itertuples(index=False, name=None))}
    machines = list(table["machine"].unique())
    with drawing(path, 9.5, 1.2 + 0.42 * len(rows), legend=False) as figure:
        axes = figure.subplots()
        for k, (name, measured) in enumerate(table.groupby("machine", sort=False)):
            beside = 0.3 * (k - (len(machines) - 1) / 2)
            places = [place[key] + beside for key in zip(measured["work"], measured["peer"], strict=True)]
            middle = measured["ratio"].to_numpy()
            spread = np.stack([middle - measured["ratio_low"], measured["ratio_high"] - middle])
            axes.errorbar(
                middle,
                places,
                xerr=spread,
                fmt="o",
                markersize=4,
                color=_COLORS[k % len(_COLORS)],
                capsize=2,
                label=name,
            )
        aims = table.drop_duplicates(["work", "peer"])["aim"]
        axes.plot(aims, list(place.values()), "|", color="#D55E00", markersize=14, markeredgewidth=2, label="aim")
        axes.axvline(1, color="#555555", linewidth=1)
        axes.set_xscale("log")
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("time of ours over the peer's, the median with quartiles")
        axes.set_yticks(list(place.values()), labels, fontsize=7)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        figure.legend(loc="outside upper left")


_COLORS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9")

_FLOORS = """
Rows that miss their aim and have a known floor: a part of the work that ours cannot leave out, timed by itself after
the turns. Where that part alone takes longer than the aim allows, nothing that does this part as ours does can meet it.
"""

_ABOUT = """\
# Against what people would use instead

`make bench` holds both sides' results against each other, then times them in turns, in one process tree. `ratio` is the
time of ours over the peer's, the median over the turns with its quartiles. Last run: Python {python}, {versions}; load
average of the machine before the start {load:.1f}. Other machines' rows are of the last run there, of its code.

- Training: ours is this project's training loop in the precision of `auto`: bf16 on machines with instructions
  for it, else fp32 (the last run's: {precision}); the peer trains in float32, as the scripts of diffusers, LeRobot and
  TorchCFM do. Losses of both are compared in float32, and ours in bf16 where it is trained in that.
- Plans in onnxruntime are timed where `make env-export` has installed it, both sides on one thread.
- Sampling in bfloat16 is timed only on machines with instructions for it.
- Rollouts: same policy, same seeds; every observation that the policy is shown must be equal to the bit. The time
  includes the start of the simulation processes. Ours has two of them and one thread for the policy, as `params.yaml`
  sets it, the peer all threads. Each of ours starts as a new Python and imports the simulator; AsyncVectorEnv's are
  forked from a process that has done so, SyncVectorEnv has none; robomimic's environment is made beforehand.
- Windows: one epoch, from opening the file. Ours are normalised too, the peers' are not; of zarr, ours reads one chunk
  after the other, so as to name a damaged one.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="measure rows that contain one of them only")
    parser.add_argument("--threads", type=int, default=cores(), help="of PyTorch, for both sides")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load, folder = os.getloadavg()[0], Path("reports")
    rows = measure(arguments.words)
    if not rows:
        raise UserError(f"given {' '.join(arguments.words)!r}: no row was measured")
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    about = _ABOUT.format(python=platform.python_version(), versions=versions, load=load, precision=native())
    write(folder, merged(folder / "benchmarks.csv", rows, all_anew=not arguments.words), about)


if __name__ == "__main__":
    main()
