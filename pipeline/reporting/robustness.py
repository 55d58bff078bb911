"""Tabulate Table 2's robustness columns: what disturbances cost each method, on the same seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from pipeline.evaluation.rollouts import UNPERTURBED
from pipeline.reporting import tables
from pipeline.reporting.episodes import (
    AGAIN,
    episode_table,
    read_episodes,
    read_metrics,
    require_model,
    score_difference,
    summary,
)
from pipeline.settings.paths import Entry, ScaleReports, split_row
from pipeline.utils.errors import UserError

ROBUSTNESS_HEADER = (
    "evaluation,method,nfe,perturbation,strength,scale,dataset,train_steps,train_seeds,n_seeds,repeats,"
    "max_score,max_score_low,max_score_high,success,success_low,success_high,"
    "diff_vs_fm,diff_low,diff_high,lost,lost_low,lost_high,precision"
)

Results = tuple[pd.DataFrame, Mapping[str, object]]
"""Episodes, disturbed and not, and metrics."""

_HOW_TO_READ = """\
Each model once more, on the first of Table 2's test seeds, with Gaussian noise on what it sees or does: fresh at every
plan, the same for every model, of the standard deviation named, in normalised units (the data span −1 to 1).
*Max score* is the highest score of an episode, averaged over episodes; *success* the share that reached full score;
both with 95 % intervals over seeds. *Against FM* is the difference in max score to {reference} under the same
disturbance, on the same seeds. *Lost* is the undisturbed score, from Table 2's episodes on the same seeds, less the
disturbed one; both start from the same noise of the policy."""


def disturbed_results(reports: ScaleReports, entries: Sequence[Entry]) -> dict[Entry, Results]:
    """Episodes and metrics of those of ``entries`` that have both disturbed and undisturbed episodes of one model.

    Raises:
        UserError: a file is wrong, or the undisturbed episodes lack a seed of the disturbed ones.
    """
    found: dict[Entry, Results] = {}
    for entry in entries:
        path = reports.disturbed_episodes(entry)
        if not path.exists() or not entry.episodes(reports.folder).exists():
            continue
        disturbed, plain = _read_disturbed(path, entry), read_episodes(reports.folder, entry)
        if set(disturbed["checkpoint"]) != set(plain["checkpoint"]):  # after a failed run
            continue
        if lacking := set(disturbed["seed"]) - set(plain["seed"]):
            raise UserError(f"{entry.episodes(reports.folder)}: lacks seed {min(lacking)} of {path}")
        same = plain[plain["seed"].isin(disturbed["seed"]) & (plain["repeat"] == 0)]
        found[entry] = pd.concat([same, disturbed]), read_metrics(reports.folder, entry, plain)
    return found


def disturbed_evaluation(reports: ScaleReports, task: str, rows: Sequence[str]) -> str | None:
    """The evaluation that was disturbed of ``task``, by the first of ``rows`` that has files; None: none has."""
    for row in rows:
        path = reports.disturbed_episodes(Entry("", *split_row(row), within=task))
        if path.exists():
            return str(episode_table(path)["evaluation"].iloc[0])
    return None


def _read_disturbed(path: Path, entry: Entry) -> pd.DataFrame:
    """The episodes of ``entry`` under disturbances.

    Raises:
        UserError: the file is wrong, of another model, or holds an episode twice.
    """
    episodes = episode_table(path)
    require_model(episodes, entry, path)
    if episodes.duplicated(["perturbation", "seed"]).any():
        raise UserError(f"{path}: holds an episode twice; {AGAIN}")
    return episodes


def robustness_table(
    found: Mapping[Entry, Results], reference: Entry, asked: Mapping[Entry, str] = MappingProxyType({})
) -> pd.DataFrame:
    """A row for each perturbation and model, undisturbed ones first.

    Args:
        found: from ``disturbed_results``. reference: the row that the others are compared with.
        asked: the setting ``precision`` of their trainings, see ``trained_in``.
    """
    rows = []
    for name in dict.fromkeys(name for episodes, _ in found.values() for name in episodes["perturbation"]):
        disturbance, _, strength = name.partition("=")
        under = {entry: _under(name, episodes) for entry, (episodes, _) in found.items()}
        for entry, (episodes, metrics) in found.items():
            mine, others = under[entry], under.get(reference) if entry != reference else None
            row = summary(entry, mine, metrics, asked.get(entry, ""))
            row |= {"perturbation": disturbance, "strength": float(strength or 0)}
            row |= tables.interval_columns(score_difference(mine, others), "diff_vs_fm", "diff")
            if disturbance != UNPERTURBED:
                row |= tables.interval_columns(score_difference(_under(UNPERTURBED, episodes), mine), "lost")
            rows.append(row)
    return pd.DataFrame(rows, columns=ROBUSTNESS_HEADER.split(",")).round(6)


def _under(name: str, episodes: pd.DataFrame) -> pd.DataFrame:
    return episodes[episodes["perturbation"] == name]


def robustness_markdown(
    table: pd.DataFrame, reference: str, missing: Sequence[Entry], titles: Mapping[str, str] = tables.NO_TITLES
) -> str:
    """The Markdown twin of ``table``, whose differences are to the row called ``reference``."""
    method, nfe = split_row(reference)
    head = ["Evaluation", "Disturbance", "Method", "NFE", "Max score", "Success", "Against FM", "Lost", "Scale"]
    head += ["Data set", "Training steps", "Precision", "Training seeds", "Test seeds", "Repeats"]
    return tables.document(
        "# Table 2 under disturbances",
        _HOW_TO_READ.format(reference=f"{tables.METHOD_NAMES[method]} at NFE {nfe}"),
        tables.markdown_table((_cells(row, titles) for _, row in table.iterrows()), head),
        tables.missing_list(
            f"{tables.entry_name(e, titles)}: its disturbed episodes are not there, or of another model"
            for e in missing
        ),
    )


def _cells(row: pd.Series, titles: Mapping[str, str]) -> list[object]:
    disturbance = "—" if row["perturbation"] == UNPERTURBED else f"{row['perturbation']} {row['strength']:g}"
    return [
        titles.get(row["evaluation"], row["evaluation"]),
        disturbance.replace("_", " "),
        tables.METHOD_NAMES[row["method"]],
        row["nfe"],
        tables.interval_cell(row, "max_score"),
        tables.interval_cell(row, "success", ".0%"),
        tables.interval_cell(row, "diff_vs_fm", "+.3f", "diff"),
        tables.interval_cell(row, "lost", "+.3f"),
        *tables.training_cells(row).values(),
        *(row[key] for key in ("train_seeds", "n_seeds", "repeats")),
    ]
