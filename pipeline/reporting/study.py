"""The coupling study: which pairs of noise and data help fine-tuning, at how many function evaluations.

Rows are computed from episode files alone; the metrics beside them add what an episode cannot show.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.statistics import Interval, paired_difference
from pipeline.reporting.episodes import read_episodes, read_metrics, temperature_of, trained_in
from pipeline.settings.paths import Entry

STUDY_HEADER = (
    "evaluation,scale,dataset,train_steps,coupling,nfe,train_seed,n_seeds,max_score,success,"
    "diff_vs_fm,diff_low,diff_high,temperature,spread_ratio,best_of_k,update_ms,precision"
)

REFERENCE = "fm_continued"
ROW_NAMES = {
    "fm": "FM base",
    "fm_continued": "FM continued",
    "regression": "regression",
    "mip": "MIP",
    "independent": "FT, independent",
    "minibatch_ot": "FT, minibatch OT",
    "sinkhorn": "FT, Sinkhorn",
    "conditional_ot": "FT, conditional OT",
    "nearest": "FT, nearest",
    "inversion": "FT, inversion",
    "reflow": "FT, reflow",
}
"""Every row that a study may have, in the order of its tables; those that begin with FT are couplings."""

OWN_NFE = {"regression": 1, "mip": 2}
"""Baselines: the only number of evaluations that they have."""


@dataclass(frozen=True)
class Cell:
    """One trained model at one number of evaluations.

    Attributes:
        row: a key of ``ROW_NAMES``. train_seed: of the base model that it started from.
        scores, successes: of each test seed, averaged over repeats, index ascending.
        metrics: the file beside the episodes.
    """

    row: str
    nfe: int
    train_seed: int
    scores: pd.Series
    successes: pd.Series
    metrics: Mapping[str, object]


def read_cells(folder: Path, evaluation: str, train_seeds: Iterable[int]) -> list[Cell]:
    """Every cell that lies under ``folder``/seed<train_seed>, by row, NFE and training seed.

    Raises:
        UserError: a file is wrong.
    """
    cells = []
    for train_seed in train_seeds:
        reports = seed_folder(folder, train_seed)
        for path in sorted((reports / "episodes").glob(f"{evaluation}-*-nfe*.csv")):
            row, _, nfe = path.stem.removeprefix(f"{evaluation}-").rpartition("-nfe")
            entry = Entry(evaluation, row, int(nfe))
            episodes = read_episodes(reports, entry)
            by_seed = episodes.groupby("seed")[["max", "success"]].mean().sort_index()
            metrics = read_metrics(reports, entry, episodes)
            cells.append(Cell(row, int(nfe), train_seed, by_seed["max"], by_seed["success"], metrics))
    order = list(ROW_NAMES)
    return sorted(cells, key=lambda cell: (order.index(cell.row), cell.nfe, cell.train_seed))


def seed_folder(folder: Path, train_seed: int) -> Path:
    """Where the cells of one training seed lie, in ``episodes`` and ``metrics`` as those of a scale do."""
    return folder / f"seed{train_seed}"


def study_table(cells: Sequence[Cell], scale: str, evaluation: str) -> pd.DataFrame:
    """A row for each cell, columns as in ``STUDY_HEADER``.

    ``diff_vs_fm`` is the paired difference in max score to ``fm_continued`` at the same NFE and training seed.
    """
    references = {(cell.nfe, cell.train_seed): cell for cell in cells if cell.row == REFERENCE}
    rows = []
    for cell in cells:
        reference = references.get((cell.nfe, cell.train_seed))
        against = reference if cell.row != REFERENCE else None
        difference = compare([cell], [against]) if against else Interval(np.nan, np.nan, np.nan)
        rows.append(
            {
                "evaluation": evaluation,
                "scale": scale,
                "dataset": cell.metrics["dataset"],
                "train_steps": cell.metrics["train_steps"],
                "coupling": cell.row,
                "nfe": cell.nfe,
                "train_seed": cell.train_seed,
                "n_seeds": len(cell.scores),
                "max_score": cell.scores.mean(),
                "success": cell.successes.mean(),
                "diff_vs_fm": difference.mean,
                "diff_low": difference.low,
                "diff_high": difference.high,
                "temperature": temperature_of(cell.metrics),
                "spread_ratio": cell.metrics["spread_ratio"],
                "best_of_k": cell.metrics["best_of_k"],
                "update_ms": cell.metrics.get("update_ms", np.nan),
                "precision": trained_in(cell.metrics),
            }
        )
    return pd.DataFrame(rows, columns=STUDY_HEADER.split(",")).round(6)


def compare(ours: Sequence[Cell], theirs: Sequence[Cell], measure: str = "scores") -> Interval:
    """The mean difference of ``measure`` (scores, or successes), paired on test seeds, with its 95 % interval.

    Several cells a side, of one training seed each and in the same order, are averaged for each test seed first: the
    interval then is over test seeds, for these very models, and says nothing about other training seeds.
    """
    a = pd.concat([getattr(cell, measure) for cell in ours], axis=1).mean(axis=1, skipna=False)
    b = pd.concat([getattr(cell, measure) for cell in theirs], axis=1).mean(axis=1, skipna=False)
    return paired_difference(a.to_numpy(), b.to_numpy(), a.index.to_numpy(), b.index.to_numpy())


@dataclass(frozen=True)
class Question:
    """Does row ``ours`` at ``our_nfe`` beat row ``theirs`` at ``their_nfe`` in ``measure``?

    Attributes:
        at_least, low_above: what the mean difference is to reach and the lower end of its interval to exceed.
        reaches: the interval is to contain or exceed zero.
        spread_at_least: what the spread ratio of ours is to keep, with every training seed.
        text: the aim in words.
    """

    text: str
    ours: str
    our_nfe: int
    theirs: str
    their_nfe: int
    measure: str
    at_least: float = float("-inf")
    low_above: float = float("-inf")
    reaches: bool = False
    spread_at_least: float = 0.0

    def met(self, found: Interval, spread: float = 1.0) -> bool:
        """Whether a difference, and the spread kept, is what was aimed at."""
        enough = found.mean >= self.at_least and found.low > self.low_above
        return enough and (found.high >= 0 or not self.reaches) and spread >= self.spread_at_least


def questions(chosen: Mapping[int, str]) -> list[Question]:
    """What the study was made to find out, for the couplings ``chosen`` on validation seeds for each NFE."""
    one, two, sixteen = chosen[1], chosen[2], chosen[16]
    fm = (REFERENCE, 16)
    gain = "NFE 1 beats FM continued at NFE 1 by 0.10, interval above 0.05"
    no_loss = "NFE 16 is not below FM continued: mean from -0.01, interval to 0"
    versus_fm = [
        Question(gain, one, 1, REFERENCE, 1, "scores", at_least=0.1, low_above=0.05),
        Question(no_loss, sixteen, 16, *fm, "scores", at_least=-0.01, reaches=True),
        Question("NFE 2 reaches FM continued at NFE 16: interval to 0", two, 2, *fm, "scores", reaches=True),
        Question("NFE 1 reaches that too, spread from 0.8", one, 1, *fm, "scores", reaches=True, spread_at_least=0.8),
    ]
    versus_outsiders = [
        Question(f"NFE {nfe} is at or above {ROW_NAMES[outsider]}", row, nfe, outsider, own, measure, at_least=0.0)
        for nfe, row in ((1, one), (2, two))
        for outsider, own in OWN_NFE.items()
        for measure in ("scores", "successes")
    ]
    more_successes = [
        Question(
            f"NFE {nfe} succeeds more often than FM continued at NFE 16", row, nfe, *fm, "successes", low_above=0.0
        )
        for nfe, row in sorted(chosen.items())
    ]
    return [*versus_fm, *versus_outsiders, *more_successes]


def answers(cells: Sequence[Cell], asked: Sequence[Question]) -> pd.DataFrame:
    """Each question's answer for each training seed, and for all together (``train_seed`` all)."""
    rows = []
    for question in asked:
        ours = {c.train_seed: c for c in cells if (c.row, c.nfe) == (question.ours, question.our_nfe)}
        theirs = {c.train_seed: c for c in cells if (c.row, c.nfe) == (question.theirs, question.their_nfe)}
        common = sorted(ours.keys() & theirs.keys())
        groups = {str(seed): [seed] for seed in common} | ({"all": common} if len(common) > 1 else {})
        for name, seeds in groups.items():
            found = compare([ours[s] for s in seeds], [theirs[s] for s in seeds], question.measure)
            spread = min(float(str(ours[s].metrics["spread_ratio"])) for s in seeds)
            rows.append(
                {
                    "question": question.text,
                    "coupling": question.ours,
                    "nfe": question.our_nfe,
                    "against": question.theirs,
                    "against_nfe": question.their_nfe,
                    "measure": {"scores": "max_score", "successes": "success"}[question.measure],
                    "train_seed": name,
                    "n_seeds": len(ours[seeds[0]].scores),
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "spread_ratio": spread,
                    "met": question.met(found, spread),
                }
            )
    return pd.DataFrame(rows).round(6)


def verdicts(table: pd.DataFrame, train_seeds: Collection[int]) -> dict[str, list[str]]:
    """Which couplings help, harm or do neither against FM continued, each as ``name (NFE …)``.

    A coupling helps at an NFE if its interval lies above zero with every one of ``train_seeds``, and harms if below;
    where the cell of a training seed is not there yet, it is unfinished.
    """
    found: dict[str, list[str]] = {"helps": [], "harms": [], "neither": [], "unfinished": []}
    tuned = table[table["coupling"].map(lambda row: ROW_NAMES[row].startswith("FT")) & table["diff_vs_fm"].notna()]
    for row, of_row in tuned.groupby("coupling", sort=False):
        at: dict[str, list[str]] = {verdict: [] for verdict in found}
        for nfe, seeds in of_row.groupby("nfe"):
            if set(seeds["train_seed"]) != set(train_seeds):
                at["unfinished"].append(str(nfe))
            elif (seeds["diff_low"] > 0).all():
                at["helps"].append(str(nfe))
            elif (seeds["diff_high"] < 0).all():
                at["harms"].append(str(nfe))
            else:
                at["neither"].append(str(nfe))
        for verdict, numbers in at.items():
            if numbers:
                found[verdict].append(f"{ROW_NAMES[str(row)].removeprefix('FT, ')} (NFE {', '.join(numbers)})")
    return found
