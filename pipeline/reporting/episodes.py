"""Read and check the files that rollouts leave behind: episodes/*.csv and metrics/*.json of one scale."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.evaluation.rollouts import UNPERTURBED, episode_columns
from pipeline.evaluation.statistics import Interval, mean_interval, paired_difference, proportion_interval
from pipeline.reporting.tables import interval_columns, read_csv
from pipeline.settings.paths import Entry
from pipeline.utils.errors import UserError

EPISODES_HEADER = ",".join(episode_columns())
AGAIN = "evaluate again to rewrite it"
"""The remedy for a file that is not as it should be."""


def read_episodes(reports: Path, entry: Entry) -> pd.DataFrame:
    """The episodes of one row: every seed with every repeat, columns as in ``EPISODES_HEADER``.

    Raises:
        UserError: the file is unreadable, or is not a whole set of ``entry``'s episodes.
    """
    path = entry.episodes(reports)
    episodes = episode_table(path)
    if entry.within:
        episodes = episodes[episodes["evaluation"] == entry.evaluation]
    if problem := _problem(episodes, entry):
        raise UserError(f"{path}: {problem}; {AGAIN}")
    return episodes.reset_index(drop=True)


def episode_table(path: Path) -> pd.DataFrame:
    """All episodes in the file ``path``.

    Raises:
        UserError: it is unreadable, or not one of whole episodes.
    """
    episodes = read_csv(path, EPISODES_HEADER, AGAIN)
    if episodes.isna().any(axis=None):
        raise UserError(f"{path}: has an empty field in {episodes.columns[episodes.isna().any()][0]}; {AGAIN}")
    for column in ("nfe", "train_seed", "seed", "repeat", "final", "max", "success", "steps"):
        if not pd.api.types.is_numeric_dtype(episodes[column]):
            raise UserError(f"{path}: {column} holds something that is not a number; {AGAIN}")
    return episodes


def _problem(episodes: pd.DataFrame, entry: Entry) -> str | None:
    """Tell what keeps ``episodes`` from being a whole set of ``entry``'s; None: nothing."""
    if episodes.empty:
        return f"has no episodes of {entry.evaluation}"
    for column, expected in (("evaluation", entry.evaluation), ("method", entry.method), ("nfe", entry.nfe)):
        if (episodes[column] != expected).any():
            return f"{column} must be {expected} throughout"
    for column in ("scale", "train_seed", "checkpoint", "perturbation"):
        if episodes[column].nunique() > 1:
            return f"mixes several values of {column}"
    if episodes["perturbation"].iloc[0] != UNPERTURBED:
        return "holds perturbed episodes, and Table 2 is about unperturbed ones"
    if not (episodes[["final", "max"]].ge(0) & episodes[["final", "max"]].le(1)).all(axis=None):
        return "final and max must lie in [0, 1]"
    if not episodes["success"].isin((0, 1)).all():
        return "success must be 0 or 1"
    twice = episodes[episodes.duplicated(["seed", "repeat"])]
    if len(twice):
        return f"seed {twice['seed'].iloc[0]}, repeat {twice['repeat'].iloc[0]} stands there twice"
    if len(episodes) != episodes["seed"].nunique() * episodes["repeat"].nunique():
        return "its repeats do not all have the same seeds"
    return None


def require_model(episodes: pd.DataFrame, entry: Entry, path: Path) -> None:
    """Check that all of ``episodes`` in the file ``path`` are of the evaluation, method and NFE of ``entry``.

    Raises:
        UserError: one is of others.
    """
    if (episodes[["evaluation", "method", "nfe"]] != [entry.evaluation, entry.method, entry.nfe]).any(axis=None):
        raise UserError(f"{path}: holds episodes of another model; {AGAIN}")


def reference(entry: Entry, present: Collection[Entry]) -> Entry:
    """The FM row that ``entry`` is compared with: that of its NFE; of baselines, which have none, that of the most."""
    numbers = [other.nfe for other in present if (other.evaluation, other.method) == (entry.evaluation, "fm")]
    return replace(entry, method="fm", nfe=entry.nfe or max(numbers, default=0))


def by_seed(episodes: pd.DataFrame, column: str) -> pd.DataFrame:
    """``column`` as (S, R): a row per seed and a column per repeat, both ascending."""
    return episodes.pivot(index="seed", columns="repeat", values=column)


def score_difference(mine: pd.DataFrame, others: pd.DataFrame | None) -> Interval | None:
    """The mean of the max score of ``mine`` less that of the ``others``, if any, paired on the seeds that both have."""
    if others is None:
        return None
    a, b = by_seed(mine, "max"), by_seed(others, "max")
    seeds = a.index.intersection(b.index)
    return paired_difference(a.loc[seeds], b.loc[seeds], seeds.to_numpy(), seeds.to_numpy())


def summary(entry: Entry, episodes: pd.DataFrame, metrics: Mapping[str, object], asked: str = "") -> dict[str, object]:
    """The columns that Table 2 and the table of disturbances share.

    Args:
        metrics: from ``read_metrics``. asked: the setting ``precision`` of the training, see ``trained_in``.
    """
    scores = by_seed(episodes, "max")
    return {
        **vars(entry),
        "scale": episodes["scale"].iloc[0],
        **{key: metrics[key] for key in ("dataset", "train_steps", "spread_ratio")},
        "train_seeds": str(episodes["train_seed"].iloc[0]),
        "n_seeds": len(scores),
        "repeats": scores.shape[1],
        **interval_columns(mean_interval(scores), "max_score"),
        **interval_columns(proportion_interval(by_seed(episodes, "success")), "success"),
        "precision": trained_in(metrics, asked),
    }


def metrics_object(reports: Path, entry: Entry) -> dict[str, object]:
    """The metrics beside the episodes of ``entry``.

    Raises:
        UserError: the file is absent or unreadable, or holds none of the evaluation.
    """
    path = entry.metrics(reports)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if entry.within and isinstance(metrics, dict):
        metrics = metrics.get(entry.evaluation)
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: holds no JSON object of {entry.evaluation}; {AGAIN}")
    return metrics


def read_metrics(reports: Path, entry: Entry, episodes: pd.DataFrame) -> dict[str, object]:
    """The metrics beside ``episodes``: ``dataset``, ``train_steps``, ``spread_ratio`` and more.

    Raises:
        UserError: as of ``metrics_object``; or they lack a key, or tell of other episodes than these.
    """
    path, metrics = entry.metrics(reports), metrics_object(reports, entry)
    shared = {name: episodes[name].iloc[0] for name in ("scale", "evaluation", "method", "nfe", "train_seed")}
    shared |= {"n_seeds": episodes["seed"].nunique(), "repeats": episodes["repeat"].nunique()}
    for key in (*shared, "dataset", "train_steps", "spread_ratio"):
        if key not in metrics:
            raise UserError(f"{path}: {key} is missing; {AGAIN}")
    for key, value in shared.items():
        if metrics[key] != value:
            raise UserError(f"{path}: {key} is {metrics[key]}, but the episodes say {value}; evaluate again")
    return metrics


def temperature_of(metrics: Mapping[str, object]) -> float:
    """The temperature that a row was sampled at; metrics made before there was a choice do not say that it is 1."""
    return float(str(metrics.get("temperature", 1.0)))


def trained_in(metrics: Mapping[str, object], asked: str = "") -> str:
    """The precision that a row's model was trained in, fp32 or bf16; empty: it was not trained, or nobody knows.

    Args:
        metrics: from ``read_metrics``; older files do not say. asked: the setting ``precision``, which says it of those
            unless it is ``auto``.
    """
    return str(metrics.get("precision") or (asked if asked != "auto" else ""))
