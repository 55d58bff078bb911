"""Profile the time of each stage: reports/profiles.csv, .md, .png and .svg.

    python -m pipeline.perf.profiles [--scale starter] [--at-most 60] [STAGE …]

Runs the commands of dvc.lock again under py-spy, one after the other, on the existing inputs; outputs are rewritten
with equal contents. A stage with absent inputs is left out and named. STAGE: a word in the stage's name.

A sample counts for the deepest function of this project on the stack, together with the innermost function that this
called. A sample inside an import counts for ``imports``. Only Python threads at work are sampled, in all processes of
the stage; waiting threads and PyTorch's thread pool are not.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
from tqdm import tqdm

from pipeline.perf.comparison import machine
from pipeline.reporting.figures import drawing
from pipeline.reporting.tables import markdown_table
from pipeline.settings.source import read_file, read_yaml
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

RATE = 50
"""Samples per second."""
_KEEPING_STATUS = "import subprocess, sys; open(sys.argv[1], 'w').write(str(subprocess.call(sys.argv[2:])))"
"""Program that runs another and writes its exit status, which py-spy does not report."""
LARGEST = 4
"""Number of items kept per stage; the others are summed up."""
COLUMNS = ["scale", "stage", "machine", "wall_s", "busy_s", "item", "share"]


def commands(scale: str, words: Sequence[str] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield name and command of each stage of ``scale`` that has run here and has its inputs.

    Raises:
        UserError: there is no such stage.
    """
    entries: dict[str, Any] = read_yaml(read_file(Path("dvc.lock")), "dvc.lock")["stages"]
    found = False
    for name, entry in entries.items():
        if f"@{scale}" not in name or (words and not any(word in name for word in words)):
            continue
        absent = [dep["path"] for dep in entry["deps"] if not Path(dep["path"]).exists()]
        if absent:
            tqdm.write(f"{name}: left out, {absent[0]} is absent")
            continue
        found = True
        yield name, shlex.split(entry["cmd"].removeprefix("exec "))
    if not found:
        raise UserError(f"given {scale} {' '.join(words)}: no stage of dvc.lock is called so and has its inputs here")


def sample(command: Sequence[str], at_most_s: float) -> tuple[float, list[str]]:
    """Run ``command`` under py-spy for at most ``at_most_s`` seconds.

    Returns:
        Seconds that it took, and the samples: stacks in py-spy's ``raw`` format, with their counts.

    Raises:
        UserError: py-spy is absent, or the command failed.
    """
    spy = Path(sys.executable).parent / "py-spy"
    if not spy.exists():
        raise UserError(f"{spy}: not found; it is of the dependency group peers, which `make env` installs")
    with tempfile.TemporaryDirectory() as folder:
        output, errors, status = (Path(folder) / name for name in ("stacks.txt", "errors.txt", "status.txt"))
        options = ["record", "--subprocesses", "--full-filenames", "--format", "raw", "--rate", str(RATE)]
        program = [sys.executable, *command[1:]] if command[0] == "python" else [*command]
        keeping = [sys.executable, "-c", _KEEPING_STATUS, str(status)]
        with errors.open("w", encoding="utf-8") as stderr:
            begin = perf_counter()
            running = subprocess.Popen(
                [str(spy), *options, "--output", str(output), "--", *keeping, *program],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            stopped = _ended_after(running, at_most_s)
            wall_s = perf_counter() - begin
        succeeded = stopped or (status.exists() and status.read_text(encoding="utf-8") == "0")
        if not (succeeded and output.exists()):
            raise UserError(f"{shlex.join(command)}: failed: {errors.read_text(encoding='utf-8').strip()[-300:]}")
        return wall_s, output.read_text(encoding="utf-8").splitlines()


def _ended_after(running: subprocess.Popen[bytes], at_most_s: float) -> bool:
    """Stop py-spy and its program after ``at_most_s`` seconds; return whether that was needed.

    A stopped py-spy writes the samples taken so far.
    """
    try:
        running.wait(at_most_s)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)
        running.wait()
        os.killpg(running.pid, signal.SIGTERM)
        return True
    return False


def shares(stacks: Iterable[str]) -> Counter[str]:
    """Count samples by item; the module's docstring defines items."""
    counts = Counter[str]()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        counts[_item(stack.split(";"))] += int(count)
    return counts


def _item(frames: Sequence[str]) -> str:
    """Return the item of a sample; ``frames``: root first, each ``function (/path/to/file.py:line)``."""
    if any("_find_and_load" in frame or "_handle_fromlist" in frame for frame in frames):
        return "imports"
    ours = [k for k, frame in enumerate(frames) if _module(frame)]
    if not ours:
        return "starting, ending, libraries' own threads"
    deepest = ours[-1]
    item = f"{_module(frames[deepest])}.{_function(frames[deepest])}"
    return item if frames[deepest] is frames[-1] else f"{item} › {_function(frames[-1])}"


def _function(frame: str) -> str:
    return frame.split(" (", 1)[0]


def _module(frame: str) -> str | None:
    """Return the module of a frame of this project; None for other frames."""
    path = Path(frame.split(" (", 1)[-1].rpartition(":")[0])
    if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("pipeline", "stages"):
        return ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return None


def measure(scale: str, words: Sequence[str], at_most_s: float) -> pd.DataFrame:
    """Profile the stages; rows of each stage's largest items, with their ``share`` of its samples."""
    rows: list[tuple[object, ...]] = []
    with tqdm(list(commands(scale, words)), desc="profiles", unit="stage") as bar:
        for name, command in bar:
            bar.set_postfix_str(name)
            wall_s, stacks = sample(command, at_most_s)
            counts = shares(stacks)
            total = counts.total()
            head = (scale, name, machine(), round(wall_s, 1), round(total / RATE, 1))
            largest = counts.most_common(LARGEST)
            rows += [(*head, item, count / total) for item, count in largest]
            rows.append((*head, "all else", 1 - sum(count for _, count in largest) / max(total, 1)))
    return pd.DataFrame(rows, columns=COLUMNS).round({"share": 3})


def write(folder: Path, table: pd.DataFrame, about: str) -> None:
    """Write ``profiles.csv``, ``.md``, ``.png`` and ``.svg``."""
    write_csv(folder / "profiles.csv", table)
    texts = [about]
    for scale, of_scale in table.groupby("scale", sort=False):
        lines = []
        for stage, rows in of_scale.groupby("stage", sort=False):
            items = "<br>".join(f"{row.share:.0%} {row.item}" for row in rows.itertuples())
            lines.append((stage, f"{rows.wall_s.iloc[0]:.1f} s", f"{rows.busy_s.iloc[0]:.1f} s", items))
        texts.append(f"\n## {scale}\n\n{markdown_table(lines, ['stage', 'time', 'at work', 'largest items'])}\n")
    write_text(folder / "profiles.md", "".join(texts))
    draw(table, folder / "profiles")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the seconds at work of each stage, split by its largest items, to ``path`` with ``.png`` and ``.svg``."""
    stages = list(dict.fromkeys(zip(table["scale"], table["stage"], strict=True)))
    with drawing(path, 9.5, 1.2 + 0.24 * len(stages), legend=False) as figure:
        axes = figure.subplots()
        for place, (scale, stage) in enumerate(stages):
            rows = table[(table["scale"] == scale) & (table["stage"] == stage)]
            left = 0.0
            for rank, row in enumerate(rows.itertuples()):
                width = float(row.share * row.busy_s)
                color = "#BBBBBB" if row.item == "all else" else "#999933" if row.item == "imports" else f"C{rank}"
                axes.barh(place, width, left=left, color=color, edgecolor="white", linewidth=0.5)
                left += width
        axes.set_yticks(range(len(stages)), [stage for _, stage in stages], fontsize=6)
        axes.invert_yaxis()
        axes.set_xlabel("seconds at work: imports olive, the largest items in colours, all else grey")


_ABOUT = """\
# Where the time of each stage goes

`python -m pipeline.perf.profiles`, {machine}; load average before the last start {load:.1f}. Samples of
py-spy, {rate} a second, of all of a stage's processes: `at work` leaves out waiting. An item is the deepest function of
this project on the stack › what it had called. Long stages were stopped after `--at-most` seconds, {at_most:g} in the
last run; rows of other runs stay.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="STAGE", help="profile stages whose name contains one of them only")
    parser.add_argument("--scale", default="starter", choices=("starter", "lab", "paper"))
    parser.add_argument("--at-most", type=float, default=60.0, help="seconds of each stage")
    arguments = parser.parse_args()
    load, folder = os.getloadavg()[0], Path("reports")
    table = measure(arguments.scale, arguments.words, arguments.at_most)
    path = folder / "profiles.csv"
    if path.exists():  # rows of other stages stay
        before = pd.read_csv(path)
        table = pd.concat([before[~before["stage"].isin(table["stage"])], table], ignore_index=True)
    about = _ABOUT.format(machine=machine(), load=load, rate=RATE, at_most=arguments.at_most)
    write(folder, table, about)


if __name__ == "__main__":
    main()
