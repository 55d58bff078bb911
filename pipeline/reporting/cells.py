"""Read the cells of a study and compare them: a cell is one trained model at one number of evaluations.

Scores are computed from episode files alone; the metrics beside them add what an episode cannot show.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.evaluation.statistics import Interval, paired_difference
from pipeline.reporting import tables
from pipeline.reporting.episodes import read_episodes, read_metrics, temperature_of, trained_in
from pipeline.settings.paths import Entry

MEASURES = {"max_score": "max", "success": "success"}
"""Columns of tables, by those of episodes."""

ALL = "all"
"""The training seed of an answer that is about all of them together."""


@dataclass(frozen=True)
class Cell:
    """A method at one number of evaluations, from one base model.

    Attributes:
        train_seed: of the base model that it started from.
        scores: by measure, of each test seed, averaged over repeats; index ascending.
        metrics: the file beside the episodes.
    """

    scale: str
    task: str
    entry: Entry
    train_seed: int
    scores: Mapping[str, pd.Series]
    metrics: Mapping[str, object]

    @property
    def key(self) -> tuple[str, int]:
        """Method and number of evaluations."""
        return self.entry.method, self.entry.nfe

    def row(self) -> dict[str, object]:
        """The columns that the tables of both studies share."""
        copied = ("dataset", "train_steps", "spread_ratio")
        return {
            **vars(self.entry),
            "scale": self.scale,
            "task": self.task,
            "train_seed": self.train_seed,
            "n_seeds": len(self.scores["success"]),
            **{measure: scores.mean() for measure, scores in self.scores.items()},
            **{name: self.metrics[name] for name in copied},
            "temperature": temperature_of(self.metrics),
            "precision": trained_in(self.metrics),
        }


def read_cell(folder: Path, entry: Entry, scale: str, task: str, train_seed: int) -> Cell:
    """The cell ``entry`` in ``folder``, in ``episodes`` and ``metrics`` as the rows of a scale.

    Raises:
        UserError: a file is wrong.
    """
    episodes = read_episodes(folder, entry)
    by_seed = episodes.groupby("seed")[list(MEASURES.values())].mean().sort_index()
    scores = {measure: by_seed[column] for measure, column in MEASURES.items()}
    return Cell(scale, task, entry, train_seed, scores, read_metrics(folder, entry, episodes))


def compare(ours: Sequence[Cell], theirs: Sequence[Cell], measure: str = "max_score") -> Interval:
    """The mean difference of ``measure``, paired on test seeds, with its 95 % interval.

    Several cells a side, of one training seed each and in the same order, are averaged for each test seed first: the
    interval then is over test seeds, for these very models, and says nothing about other training seeds.
    """
    a, b = (
        pd.concat([cell.scores[measure] for cell in side], axis=1).mean(axis=1, skipna=False) for side in (ours, theirs)
    )
    return paired_difference(a.to_numpy(), b.to_numpy(), a.index.to_numpy(), b.index.to_numpy())


@dataclass(frozen=True)
class Question:
    """Does ``method`` at ``nfe`` beat ``against`` at ``against_nfe`` in ``measure``?

    Attributes:
        text: the aim in words.
        at_least: the least mean difference.
        low_above: a bound that the lower end of its interval must exceed.
        reaches: the upper end of the interval must be zero or more.
        spread_at_least: the least spread ratio of ours, with every training seed.
    """

    text: str
    method: str
    nfe: int
    against: str
    against_nfe: int
    measure: str
    at_least: float = -math.inf
    low_above: float = -math.inf
    reaches: bool = False
    spread_at_least: float = 0.0

    def met(self, found: Interval, spread: float = 1.0) -> bool:
        """Tell whether a difference and a spread ratio reach the aim."""
        enough = found.mean >= self.at_least and found.low > self.low_above
        return enough and (found.high >= 0 or not self.reaches) and spread >= self.spread_at_least


def answers(cells: Sequence[Cell], asked: Sequence[Question]) -> Iterator[dict[str, object]]:
    """Each question's answer on each task, for each training seed and for all together (``train_seed`` all)."""
    for question in asked:
        for task in dict.fromkeys(cell.task for cell in cells):
            of_task = [cell for cell in cells if cell.task == task]
            ours = {c.train_seed: c for c in of_task if c.key == (question.method, question.nfe)}
            theirs = {c.train_seed: c for c in of_task if c.key == (question.against, question.against_nfe)}
            common = sorted(ours.keys() & theirs.keys())
            for name, seeds in [(str(seed), [seed]) for seed in common] + [(ALL, common)] * (len(common) > 1):
                found = compare([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds], question.measure)
                spread = min(float(str(ours[seed].metrics["spread_ratio"])) for seed in seeds)
                yield {
                    "question": question.text,
                    **vars(question),
                    "task": task,
                    "train_seed": name,
                    "n_seeds": len(ours[seeds[0]].scores[question.measure]),
                    **tables.interval_columns(found, "difference", ""),
                    "spread_ratio": spread,
                    "met": question.met(found, spread),
                }
