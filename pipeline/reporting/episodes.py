"""The files that rollouts leave behind, read back and checked: episodes/*.csv and metrics/*.json of one scale."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.evaluation.rollouts import UNPERTURBED, episode_columns
from pipeline.settings.paths import Entry
from pipeline.utils.errors import UserError

EPISODES_HEADER = ",".join(episode_columns())


def read_episodes(reports: Path, entry: Entry) -> pd.DataFrame:
    """The episodes of one row: every seed with every repeat, columns as in ``EPISODES_HEADER``.

    Raises:
        UserError: the file is unreadable, or is not a whole set of ``entry``'s episodes.
    """
    path = entry.episodes(reports)
    episodes = episode_table(path)
    if entry.within:
        episodes = episodes[episodes["evaluation"] == entry.evaluation]
    if problem := _content_problem(episodes, entry):
        raise UserError(f"{path}: {problem}; evaluate again to rewrite it")
    return episodes.reset_index(drop=True)


def episode_table(path: Path) -> pd.DataFrame:
    """All episodes in the file ``path``.

    Raises:
        UserError: it is unreadable, or not one of whole episodes.
    """
    try:
        # "none" and "nan" are text here: only an empty field is a missing value
        episodes = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
    if problem := form_problem(episodes):
        raise UserError(f"{path}: {problem}; evaluate again to rewrite it")
    return episodes


def form_problem(episodes: pd.DataFrame) -> str | None:
    """What keeps a table from being one of whole episodes; None: nothing."""
    header = ",".join(episodes.columns)
    subtasks = sum(column[0] == "p" and column[1:].isdigit() for column in episodes.columns)
    if header != ",".join(episode_columns(subtasks)):
        return f"columns are {header}, expected {EPISODES_HEADER}"
    if episodes.empty:
        return "has no episodes"
    if episodes.isna().any(axis=None):
        return f"has an empty field in {episodes.columns[episodes.isna().any()][0]}"
    for column in ("nfe", "train_seed", "seed", "repeat", "final", "max", "success", "steps"):
        if not pd.api.types.is_numeric_dtype(episodes[column]):
            return f"{column} holds something that is not a number"
    return None


def _content_problem(episodes: pd.DataFrame, entry: Entry) -> str | None:
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


def read_metrics(reports: Path, entry: Entry, episodes: pd.DataFrame) -> dict[str, object]:
    """The metrics beside ``episodes``: ``dataset``, ``train_steps``, ``spread_ratio`` and more.

    Raises:
        UserError: the file is absent or unreadable, lacks a key, or tells of other episodes than these.
    """
    path = entry.metrics(reports)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if entry.within and isinstance(metrics, dict):
        metrics = metrics.get(entry.evaluation)
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: holds no JSON object of {entry.evaluation}; evaluate again to rewrite it")
    shared = {name: episodes[name].iloc[0] for name in ("scale", "evaluation", "method", "nfe", "train_seed")}
    shared |= {"n_seeds": episodes["seed"].nunique(), "repeats": episodes["repeat"].nunique()}
    for key in (*shared, "dataset", "train_steps", "spread_ratio"):
        if key not in metrics:
            raise UserError(f"{path}: {key} is missing; evaluate again to rewrite it")
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
