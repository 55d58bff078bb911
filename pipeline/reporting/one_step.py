"""The one-step study: who is best at one evaluation, and at two and sixteen, on many tasks.

Rows are computed from episode files alone; the metrics beside them add what an episode cannot show.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation.aggregate import Runs, interquartile_mean, probability_of_improvement
from pipeline.evaluation.statistics import Interval, paired_difference
from pipeline.reporting.episodes import read_episodes, read_metrics, temperature_of, trained_in
from pipeline.settings.one_step import METHODS
from pipeline.settings.paths import Entry, ScaleReports
from pipeline.utils.errors import UserError

ONE_STEP_HEADER = (
    "task,evaluation,method,nfe,temperature,train_seed,n_seeds,max_score,success,spread_ratio,ms_per_plan,train_passes,"
    "scale,dataset,train_steps,validation_max_score,validation_success,precision"
)
ANSWERS_HEADER = "question,task,method,nfe,against,against_nfe,measure,train_seed,n_seeds,difference,low,high,met"
AGGREGATES_HEADER = (
    "method,nfe,measure,tasks,iqm,iqm_low,iqm_high,ft_fm_nfe,improvement_of_ft_fm,improvement_low,improvement_high"
)
MEASURES = {"max_score": "max", "success": "success"}
"""Columns of the table, by those of episodes."""

ALL = "all"


@dataclass(frozen=True)
class Cell:
    """A method at one number of evaluations, from one base model.

    Attributes:
        scores: by measure, of each test seed, averaged over repeats; index ascending.
        metrics: the file beside the episodes. ms_per_plan: NaN: not measured yet.
    """

    scale: str
    task: str
    entry: Entry
    train_seed: int
    scores: Mapping[str, pd.Series]
    metrics: Mapping[str, object]
    ms_per_plan: float

    @property
    def key(self) -> tuple[str, int]:
        """Method and number of evaluations."""
        return self.entry.method, self.entry.nfe


def read_cells(scales: Iterable[str]) -> list[Cell]:
    """Every cell that is there, by task, method, NFE and training seed.

    Raises:
        UserError: a file is wrong.
    """
    cells = []
    for scale in scales:
        for path in sorted(ScaleReports(scale).one_step.glob("*/seed*/*/episodes/*.csv")):
            folder, task, seed = path.parents[1], path.parents[3].name, path.parents[2].name.removeprefix("seed")
            head, _, nfe = path.stem.rpartition("-nfe")
            evaluation, _, method = head.rpartition("-")
            if method not in METHODS or not nfe.isdigit():
                raise UserError(f"{path}: not a cell of the study; allowed: EVALUATION-METHOD-nfeN.csv")
            entry = Entry(evaluation, method, int(nfe))
            episodes = read_episodes(folder, entry)
            by_seed = episodes.groupby("seed")[list(MEASURES.values())].mean().sort_index()
            scores = {measure: by_seed[column] for measure, column in MEASURES.items()}
            times = _read_times(ScaleReports(scale).one_step_times(task))
            metrics = read_metrics(folder, entry, episodes)
            milliseconds = times.get(f"{entry.method}-nfe{entry.nfe}", math.nan)
            cells.append(Cell(scale, task, entry, int(seed), scores, metrics, milliseconds))
    order, tasks = list(METHODS), list(dict.fromkeys(cell.task for cell in cells))
    return sorted(
        cells,
        key=lambda cell: (tasks.index(cell.task), order.index(cell.entry.method), cell.entry.nfe, cell.train_seed),
    )


@cache
def _read_times(path: Path) -> dict[str, float]:
    """Milliseconds a plan by method and NFE; none where they have not been measured."""
    if not path.exists():
        return {}
    times: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["ms_per_plan"]
    return times


def one_step_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """A row for each cell, columns as in ``ONE_STEP_HEADER``."""
    copied = ("spread_ratio", "train_passes", "dataset", "train_steps")
    rows = [
        {
            "task": cell.task,
            "evaluation": cell.entry.evaluation,
            "method": cell.entry.method,
            "nfe": cell.entry.nfe,
            "temperature": temperature_of(cell.metrics),
            "train_seed": cell.train_seed,
            "n_seeds": len(cell.scores["success"]),
            **{measure: scores.mean() for measure, scores in cell.scores.items()},
            "ms_per_plan": cell.ms_per_plan,
            **{name: cell.metrics[name] for name in copied},
            "scale": cell.scale,
            "validation_max_score": cell.metrics["validation_max_score"],
            "validation_success": cell.metrics["validation_success"],
            "precision": trained_in(cell.metrics),
        }
        for cell in cells
    ]
    return pd.DataFrame(rows, columns=ONE_STEP_HEADER.split(",")).round(6)


@dataclass(frozen=True)
class Question:
    """Is ``ft_fm`` at ``nfe`` better than ``against`` at ``against_nfe`` in ``measure``?

    Attributes:
        at_least: whether it need only not be worse: the interval is to contain or exceed zero.
    """

    nfe: int
    against: str
    against_nfe: int
    measure: str
    at_least: bool = False

    @property
    def text(self) -> str:
        kind = "not below" if self.at_least else "above"
        return (
            f"FT-FM at NFE {self.nfe} is {kind} {METHODS[self.against].title} at NFE {self.against_nfe} in "
            f"{self.measure.replace('_', ' ')}"
        )

    def met(self, found: Interval) -> bool:
        """Whether a paired difference is what was asked for."""
        return found.high >= 0 if self.at_least else found.low > 0


def questions() -> list[Question]:
    """What the study was made to find out, fixed before any test seed was run."""
    better = [(1, method, 1) for method in ("fm_continued", "regression", "imle", "drifting", "lsd")]
    better += [(1, "mip", 2), (2, "mip", 2), (2, "lsd", 2)]
    as_good = [(1, "fm", 16), (2, "fm", 16), (16, "fm", 16), (16, "fm_continued", 16)]
    return [
        Question(nfe, against, its, measure, at_least)
        for pairs, at_least in ((better, False), (as_good, True))
        for nfe, against, its in pairs
        for measure in MEASURES
    ]


def answers(cells: Sequence[Cell], asked: Sequence[Question]) -> pd.DataFrame:
    """Each question's answer on each task, for each training seed and for all together (``train_seed`` all).

    Differences are paired on test seeds. Training seeds together are averaged for each test seed first: the interval is
    over test seeds, for these very models.
    """
    found = {(cell.task, *cell.key, cell.train_seed): cell for cell in cells}
    rows = []
    for question in asked:
        for task in dict.fromkeys(cell.task for cell in cells):
            seeds = [
                seed
                for (of, method, nfe, seed) in found
                if (of, method, nfe) == (task, "ft_fm", question.nfe)
                and (task, question.against, question.against_nfe, seed) in found
            ]
            groups = {str(seed): [seed] for seed in seeds} | ({ALL: seeds} if len(seeds) > 1 else {})
            for name, group in groups.items():
                ours = [found[task, "ft_fm", question.nfe, seed] for seed in group]
                theirs = [found[task, question.against, question.against_nfe, seed] for seed in group]
                rows.append(_answer(question, task, name, ours, theirs))
    return pd.DataFrame(rows, columns=ANSWERS_HEADER.split(",")).round(6)


def _answer(
    question: Question, task: str, name: str, ours: Sequence[Cell], theirs: Sequence[Cell]
) -> dict[str, object]:
    a, b = (
        pd.concat([cell.scores[question.measure] for cell in side], axis=1).mean(axis=1, skipna=False)
        for side in (ours, theirs)
    )
    difference = paired_difference(a.to_numpy(), b.to_numpy(), a.index.to_numpy(), b.index.to_numpy())
    return {
        "question": question.text,
        "task": task,
        "method": "ft_fm",
        "nfe": question.nfe,
        "against": question.against,
        "against_nfe": question.against_nfe,
        "measure": question.measure,
        "train_seed": name,
        "n_seeds": len(a),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "met": question.met(difference),
    }


def aggregates(cells: Sequence[Cell]) -> pd.DataFrame:
    """Over tasks: each method's interquartile mean, and how probable it is that ``ft_fm`` improves on it.

    ``ft_fm`` is taken at the method's NFE, and at NFE 1 against MIP, which has only two. Tasks that lack either are
    left out of the comparison.
    """
    rows = []
    for method, nfe in dict.fromkeys(cell.key for cell in cells):
        for measure in MEASURES:
            our_nfe = 1 if method == "mip" else nfe
            runs, ours = runs_of(cells, method, nfe, measure), runs_of(cells, "ft_fm", our_nfe, measure)
            common = [task for task in runs if task in ours]
            mean = interquartile_mean(runs)
            row = {"method": method, "nfe": nfe, "measure": measure, "tasks": len(runs)}
            row |= {"iqm": mean.mean, "iqm_low": mean.low, "iqm_high": mean.high}
            if common and method != "ft_fm":
                better = probability_of_improvement({t: ours[t] for t in common}, {t: runs[t] for t in common})
                row |= {"ft_fm_nfe": our_nfe, "improvement_of_ft_fm": better.mean}
                row |= {"improvement_low": better.low, "improvement_high": better.high}
            rows.append(row)
    return pd.DataFrame(rows, columns=AGGREGATES_HEADER.split(",")).round(6)


def runs_of(cells: Sequence[Cell], method: str, nfe: int, measure: str) -> Runs:
    """The scores of a method by task, of each training seed."""
    runs: dict[str, list[NDArray[np.float64]]] = {}
    for cell in cells:
        if cell.key == (method, nfe):
            runs.setdefault(cell.task, []).append(cell.scores[measure].to_numpy(dtype=np.float64))
    return runs
