"""Table 2's robustness columns: what disturbances cost each method, on the same seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from pipeline.evaluation.rollouts import UNPERTURBED
from pipeline.evaluation.statistics import Interval, mean_interval, paired_difference, proportion_interval
from pipeline.reporting.episodes import form_problem, read_episodes, read_metrics, trained_in
from pipeline.reporting.tables import METHOD_NAMES, NO_TITLES
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


def perturbation(disturbance: str, strength: float) -> str:
    """Their name in episode files, such as ``action_noise=0.1``."""
    return f"{disturbance}={strength:g}"


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
            return str(pd.read_csv(path, usecols=["evaluation"], nrows=1)["evaluation"].iloc[0])
    return None


def _read_disturbed(path: Path, entry: Entry) -> pd.DataFrame:
    """The episodes of ``entry`` under disturbances.

    Raises:
        UserError: it is none, or one of another model.
    """
    try:
        episodes = pd.read_csv(path)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
    if problem := form_problem(episodes):
        raise UserError(f"{path}: {problem}; evaluate again to rewrite it")
    of = set(zip(episodes["evaluation"], episodes["method"], episodes["nfe"], strict=True))
    if of != {(entry.evaluation, entry.method, entry.nfe)} or episodes.duplicated(["perturbation", "seed"]).any():
        raise UserError(f"{path}: holds episodes of another model, or one twice; evaluate again to rewrite it")
    return episodes


def robustness_table(
    scale: str, found: Mapping[Entry, Results], reference: Entry, asked: Mapping[Entry, str] = MappingProxyType({})
) -> pd.DataFrame:
    """A row for each perturbation and model, undisturbed ones first.

    Args:
        found: from ``disturbed_results``. reference: what differences are taken to.
        asked: the setting ``precision`` of their trainings, see ``trained_in``.
    """
    rows = []
    for name in dict.fromkeys(name for episodes, _ in found.values() for name in episodes["perturbation"]):
        disturbance, _, strength = name.partition("=")
        under = {entry: _under(name, episodes) for entry, (episodes, _) in found.items()}
        for entry, (episodes, metrics) in found.items():
            mine = under[entry]
            about = {
                "evaluation": entry.evaluation,
                "method": entry.method,
                "nfe": entry.nfe,
                "perturbation": disturbance,
                "strength": float(strength or 0),
                "scale": scale,
                "dataset": metrics["dataset"],
                "train_steps": metrics["train_steps"],
                "train_seeds": metrics["train_seed"],
                "precision": trained_in(metrics, asked.get(entry, "")),
                "n_seeds": mine["seed"].nunique(),
                "repeats": mine["repeat"].nunique(),
            }
            scores = _named("max_score", mean_interval(_by_seed(mine, "max")))
            scores |= _named("success", proportion_interval(_by_seed(mine, "success")))
            if entry != reference and reference in under:
                scores |= _named("diff", _difference(mine, under[reference]), mean="diff_vs_fm")
            if disturbance != UNPERTURBED:
                scores |= _named("lost", _difference(_under(UNPERTURBED, episodes), mine))
            rows.append(about | scores)
    return pd.DataFrame(rows, columns=ROBUSTNESS_HEADER.split(",")).round(6)


def robustness_markdown(
    table: pd.DataFrame, reference: str, missing: Sequence[Entry], titles: Mapping[str, str] = NO_TITLES
) -> str:
    """The Markdown twin of ``table``, whose differences are to the row called ``reference``."""
    method, nfe = split_row(reference)
    name = f"{METHOD_NAMES[method]} at NFE {nfe}"
    lines = [
        ["Evaluation", "Disturbance", "Method", "NFE", "Max score", "Success", "Against FM", "Lost", "Scale"],
        ["---"] * 9,
    ]
    lines[0] += ["Data set", "Training steps", "Precision", "Training seeds", "Test seeds", "Repeats"]
    lines[1] += ["---"] * 6
    for _, row in table.iterrows():
        disturbance = "—" if row["perturbation"] == UNPERTURBED else f"{row['perturbation']} {row['strength']:g}"
        lines.append(
            [
                titles.get(row["evaluation"], row["evaluation"]),
                disturbance.replace("_", " "),
                METHOD_NAMES[row["method"]],
                str(row["nfe"]),
                _cell(row, "max_score", "max_score", ".3f"),
                _cell(row, "success", "success", ".0%").replace("%", " %"),
                _cell(row, "diff_vs_fm", "diff", "+.3f"),
                _cell(row, "lost", "lost", "+.3f"),
                *(str(row[key]) for key in ("scale", "dataset", "train_steps")),
                row["precision"] or "—",
                *(str(row[key]) for key in ("train_seeds", "n_seeds", "repeats")),
            ]
        )
    parts = [
        "# Table 2 under disturbances",
        _HOW_TO_READ.format(reference=name),
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
    ]
    if missing:
        names = [
            f"{titles.get(one.evaluation, one.evaluation)}, {METHOD_NAMES[one.method]}, NFE {one.nfe}"
            for one in missing
        ]
        gone = [f"- {name}: its disturbed episodes are not there, or of another model." for name in names]
        parts.append("\n".join(["**Missing rows**", "", *gone]))
    return "\n\n".join(parts) + "\n"


def _under(name: str, episodes: pd.DataFrame) -> pd.DataFrame:
    return episodes[episodes["perturbation"] == name]


def _by_seed(episodes: pd.DataFrame, column: str) -> pd.DataFrame:
    return episodes.pivot(index="seed", columns="repeat", values=column)


def _difference(episodes: pd.DataFrame, reference: pd.DataFrame) -> Interval:
    mine, its = _by_seed(episodes, "max"), _by_seed(reference, "max")
    seeds = mine.index.intersection(its.index)
    return paired_difference(mine.loc[seeds], its.loc[seeds], seeds.to_numpy(), seeds.to_numpy())


def _named(name: str, interval: Interval, mean: str = "") -> dict[str, float]:
    return {mean or name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _cell(row: pd.Series, mean: str, name: str, style: str) -> str:
    if pd.isna(row[mean]):
        return "—"
    return f"{row[mean]:{style}} [{row[f'{name}_low']:{style}}, {row[f'{name}_high']:{style}}]"
