"""Tabulate and draw an offline task: one row per method, NFE and perturbation, as CSV, Markdown and a figure.

Every score is computed from the files of held-out episodes alone; the metrics beside them add what an episode cannot
show. A row whose episodes are not there is named with the reason, and costs no other row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.evaluation.rollouts import UNPERTURBED
from pipeline.evaluation.statistics import Interval, mean_interval, paired_difference, shown
from pipeline.reporting import tables
from pipeline.reporting.episodes import AGAIN, metrics_object, reference, require_model, temperature_of
from pipeline.reporting.figures import draw_methods, drawing, nfe_axis
from pipeline.reporting.offline_rows import OFFLINE_COLUMNS
from pipeline.settings.paths import Entry, ScaleReports, listed_models
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.errors import UserError

COMPARED = ("error", "best_of_k", "mean_error", "nll", "crps")
"""Scores with an interval, and with their difference to FM's."""
ABOUT = ("scale", "dataset", "train_steps", "train_seeds", "n_episodes", "n_windows", "repeats")
OFFLINE_HEADER = (
    *("evaluation", "method", "nfe", "perturbation", *ABOUT),
    *(f"{name}{end}" for name in COMPARED for end in ("", "_low", "_high")),
    *(f"{name}{end}" for name in COMPARED for end in ("_diff_vs_fm", "_diff_low", "_diff_high")),
    *("temperature", "spread_ratio", "spread", "jump", "jump_recorded", "ms_per_plan", "precision"),
)

_HOW_TO_READ = """\
One row is one trained model, asked for {repeats} answers to each window of {episodes} held-out episodes by which
nothing was chosen: checkpoints and the early stop of fine-tuning have held-out episodes of their own. All numbers but
the last columns are in normalised units (the training data span −1 to 1), means over episodes, with 95 % bootstrap
intervals over episodes (none where there is a single one); *against FM* is the difference to the FM row of the same
NFE, perturbation and windows, on the same draws of noise; below zero, the method is better.

- *Error*: root mean square error of one answer; *best of K*: of each window's nearest answer; *RMSE*: of the mean of
  the answers. A model that answers with the mean has the least error and no diversity: read them with the spread and
  the CRPS, which rewards answers that are spread as the record is.
- *NLL*: negative log-likelihood of a component in nats, Gaussian with the variances that fit best; *CRPS*: continuous
  ranked probability score.
- *τ*: temperature, the factor of the noise that solves start from.
- *Spread*: standard deviation of the answers, and in brackets its ratio to the base model's at NFE 16 on validation
  episodes, below which diversity is being lost; *seam*: root mean square step from a plan's last executed action to the
  next plan's first, and in brackets the recorded one.
- *ms*: median time of a plan for one observation on the machine that evaluated the row."""

_PANELS = {
    "mean_error": "RMSE (of the mean of the answers)",
    "crps": "CRPS",
    "best_of_k": "Error of the best of K answers",
    "nll": "NLL of a component (nats)",
}


def report(asked: tables.Request) -> None:
    """Write the table and draw the figure of one task."""
    reports, task = asked.reports, asked.task
    rows = [Entry(task, method, nfe, within=task) for method, nfe in listed_models(asked.settings)]
    csv = reports.offline(task)
    text, picture = csv.with_suffix(".md"), csv.with_suffix(".png")
    with asked.begin(deps=[reports.folder / "episodes", reports.folder / "metrics"], outs=[csv, text, picture]):
        table, title = offline_table(reports, rows), tables.task_titles({task: asked.settings.task(task)})[task]
        missing = tables.missing_rows(reports.folder, rows)
        write_csv(csv, table)
        write_text(text, offline_markdown(table, missing, scale=reports.scale, title=title))
        offline_vs_nfe(table, picture, title)


@dataclass(frozen=True)
class _Found:
    """The episodes of a row under one perturbation, and its metrics."""

    entry: Entry
    episodes: pd.DataFrame
    metrics: Mapping[str, object]

    @property
    def perturbation(self) -> str:
        return str(self.episodes["perturbation"].iloc[0])


def offline_table(reports: ScaleReports, expected: Sequence[Entry]) -> pd.DataFrame:
    """The rows for those of ``expected`` whose episodes lie under ``reports``, undisturbed ones first.

    Raises:
        UserError: a file is wrong, or a row has other episodes than its FM row.
    """
    found = [row for entry in expected for row in _read(reports, entry)]
    by_entry = {(row.entry, row.perturbation): row for row in found}
    ordered = sorted(found, key=lambda row: row.perturbation != UNPERTURBED)
    present = {row.entry for row in found}
    rows = [_row(row, by_entry.get((reference(row.entry, present), row.perturbation))) for row in ordered]
    return pd.DataFrame(rows, columns=list(OFFLINE_HEADER)).round(6)


def _read(reports: ScaleReports, entry: Entry) -> Iterator[_Found]:
    """Undisturbed episodes, and the disturbed ones of the same model, where there are any."""
    plain, disturbed = entry.episodes(reports.folder), reports.disturbed_episodes(entry)
    if not plain.exists():
        return
    episodes, metrics = _checked(plain, entry), metrics_object(reports.folder, entry)
    yield _Found(entry, episodes, metrics)
    if disturbed.exists():
        others = _checked(disturbed, entry)
        if set(others["checkpoint"]) == set(episodes["checkpoint"]):  # else after a failed run
            for _, of_one in others.groupby("perturbation", sort=False):
                yield _Found(entry, of_one.reset_index(drop=True), metrics)


def _checked(path: Path, entry: Entry) -> pd.DataFrame:
    episodes = tables.read_csv(path, ",".join(OFFLINE_COLUMNS), AGAIN)
    require_model(episodes, entry, path)
    return episodes


def _row(row: _Found, fm: _Found | None) -> dict[str, object]:
    episodes, metrics = row.episodes, row.metrics
    values: dict[str, object] = {
        **vars(row.entry),
        "perturbation": row.perturbation,
        "scale": episodes["scale"].iloc[0],
        "train_seeds": str(episodes["train_seed"].iloc[0]),
        "n_episodes": len(episodes),
        "n_windows": int(episodes["windows"].sum()),
        "repeats": int(episodes["repeats"].iloc[0]),
        "temperature": temperature_of(metrics),
        **{name: episodes[name].mean() for name in ("spread", "jump", "jump_recorded")},
        **{name: metrics[name] for name in ("dataset", "train_steps", "spread_ratio", "ms_per_plan", "precision")},
    }
    for name in COMPARED:
        values |= tables.interval_columns(mean_interval(episodes[name]), name)
        if fm is not None and row.entry.method != "fm":
            values |= tables.interval_columns(_difference(row, fm, name), f"{name}_diff_vs_fm", f"{name}_diff")
    return values


def _difference(row: _Found, fm: _Found, name: str) -> Interval:
    mine, its = row.episodes, fm.episodes
    try:
        return paired_difference(mine[name], its[name], mine["episode"].to_numpy(), its["episode"].to_numpy())
    except ValueError:
        raise UserError(f"{row.entry.stem}: has other episodes than {fm.entry.stem}; evaluate both again") from None


def offline_markdown(table: pd.DataFrame, missing: Mapping[Entry, str], *, scale: str, title: str) -> str:
    """The Markdown twin of ``table``: how to read it, and what is missing and why."""
    about = ""
    if len(table):
        about = _HOW_TO_READ.format(repeats=table["repeats"].max(), episodes=tables.span(table["n_episodes"]))
    return tables.document(
        f"# {title}, scale `{scale}`: held-out episodes",
        about,
        tables.markdown_table(_cells(row) for _, row in table.iterrows()),
        tables.missing_list(f"{tables.METHOD_NAMES[e.method]}, NFE {e.nfe}: {reason}" for e, reason in missing.items()),
    )


def _cells(row: pd.Series) -> dict[str, str]:
    def against_fm(name: str) -> str:
        return tables.interval_cell(row, f"{name}_diff_vs_fm", "+.4f", f"{name}_diff")

    return {
        "Method": tables.METHOD_NAMES[row["method"]],
        "NFE": str(row["nfe"]),
        "Perturbation": "—" if row["perturbation"] == UNPERTURBED else row["perturbation"],
        "Error": tables.interval_cell(row, "error", ".4f"),
        "Error against FM": against_fm("error"),
        "Best of K": tables.interval_cell(row, "best_of_k", ".4f"),
        "RMSE": tables.interval_cell(row, "mean_error", ".4f"),
        "RMSE against FM": against_fm("mean_error"),
        "NLL": tables.interval_cell(row, "nll", ".4f"),
        "CRPS": tables.interval_cell(row, "crps", ".4f"),
        "CRPS against FM": against_fm("crps"),
        "τ": shown(row["temperature"], "g"),
        "Spread": f"{shown(row['spread'])} ({shown(row['spread_ratio'], '.2f')})",
        "Seam": f"{shown(row['jump'])} ({shown(row['jump_recorded'])})",
        "ms": shown(row["ms_per_plan"], ".2f"),
        **tables.training_cells(row),
        "Training seeds": row["train_seeds"],
        "Windows": str(row["n_windows"]),
        "K": str(row["repeats"]),
    }


def offline_vs_nfe(table: pd.DataFrame, path: Path, title: str) -> None:
    """Draw four scores of each method against NFE, less being better; ``table``: from ``offline_table``.

    Raises:
        UserError: no row has an NFE.
    """
    table = table[table["perturbation"] == UNPERTURBED]
    numbers = sorted(set(table["nfe"]) - {0})
    if not numbers:
        raise UserError(f"{path.stem}: no row of a trained model, so there is nothing to draw")
    first = table.iloc[0]
    title = (
        f"{title}: held-out episodes, less is better\n"
        f"scale {first['scale']}, data set {first['dataset']}, training seed {first['train_seeds']}\n"
        f"{first['n_episodes']} episodes, bars are 95 % intervals; normalised units"
    )
    with drawing(path, 8.4, 6.8, title) as figure:
        for panel, (name, label) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS.items(), strict=True):
            draw_methods(panel, table, name)
            nfe_axis(panel, numbers)
            panel.set_title(label)
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("NFE (function evaluations per answer)")
