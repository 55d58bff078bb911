"""Report the coupling study: which pairs of noise and data help fine-tuning, at how many function evaluations."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline.evaluation.statistics import shown
from pipeline.reporting import tables
from pipeline.reporting.cells import Cell, Question, answers, compare, read_cell
from pipeline.reporting.figures import drawing, in_percent, nfe_axis
from pipeline.settings.paths import Entry, ScaleReports
from pipeline.settings.study import OWN_NFE, ROW_NAMES
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.errors import UserError

STUDY_HEADER = (
    "evaluation,scale,dataset,train_steps,coupling,nfe,train_seed,n_seeds,max_score,success,"
    "diff_vs_fm,diff_low,diff_high,temperature,spread_ratio,best_of_k,update_ms,precision"
)
ANSWERS_HEADER = (
    "question,coupling,nfe,against,against_nfe,measure,train_seed,n_seeds,difference,low,high,spread_ratio,met"
)
REFERENCE = "fm_continued"


_VERDICTS = {
    "helps": "**Help**: above FM continued with every training seed, each interval clear of zero",
    "harms": "**Harm**: below it with every training seed, each interval clear of zero",
    "neither": "Neither, or not with every training seed",
    "unfinished": "Not there yet with every training seed",
}

_ABOUT = """\
`make study` makes this, a cell at a time; what is there is not made again. The base models, one for each training seed,
are shipped in `data/checkpoints`.

- *FM base* is that model, *FM continued* the same trained on by flow matching;
- *FT, …* are fine-tuned from it, by loss (6) through the solve with the N evaluations of their column, with that
  coupling;
- *regression* and *MIP* (arXiv 2512.01809) are policies without a flow, on the same net, trained from scratch for the
  compute of the base model's steps and the fine-tuning together. Their NFE are 1 and 2.

FM continued and every fine-tuning cost the same compute, in passes of the net, with what a coupling's solves cost. Of
evenly spaced checkpoints of a trained row the best on validation seeds is rolled out on the test seeds, once. Couplings
that ignore what the model makes of a noise were tried at NFE 1 and 8 alone, since a prototype had found them to harm.
Settings were chosen on validation seeds with `python -m stages.study try`: `coupling_study_tried.csv` has what was
tried."""

# Okabe and Ito's palette; marker and dash tell the rows apart where colour does not
_LOOK: dict[str, tuple[str, str, str]] = {
    "fm": ("#000000", "o", ":"),
    "fm_continued": ("#000000", "o", "-"),
    "regression": ("#666666", "*", ""),
    "mip": ("#666666", "X", ""),
    "independent": ("#CC79A7", "v", "--"),
    "minibatch_ot": ("#E69F00", "^", "--"),
    "sinkhorn": ("#F0E442", "<", "--"),
    "conditional_ot": ("#009E73", ">", "-."),
    "nearest": ("#D55E00", "s", "-"),
    "inversion": ("#56B4E9", "P", "-."),
    "reflow": ("#0072B2", "D", "-"),
}


def report(asked: tables.Request) -> None:
    """Write the tables, the report and the pictures of the cells that are there."""
    reports, settings = asked.reports, asked.settings.task(asked.task)
    evaluation, study = settings.select.evaluation, settings.studied()
    table_csv, answers_csv, text, scores, differences = (
        reports.folder / f"coupling_study{name}" for name in (".csv", "_answers.csv", ".md", ".png", "_differences.png")
    )
    with asked.begin(deps=[reports.study], outs=[table_csv, answers_csv, text, scores, differences]):
        cells = read_cells(reports, asked.task, evaluation, study.train_seeds)
        if not cells:
            raise UserError(f"{reports.study}: holds no cell; run `make study`")
        chosen = {int(key.removeprefix("nfe")): coupling for key, coupling in study.chosen.items()}
        table, answered = study_table(cells), study_answers(cells, chosen)
        write_csv(table_csv, table)
        write_csv(answers_csv, answered)
        score_panels(table, scores)
        difference_panels(table, differences)
        title, pictures = tables.evaluation_titles({asked.task: settings})[evaluation], [scores.name, differences.name]
        write_text(text, study_markdown(table, answered, study.train_seeds, chosen, pictures, title))


def read_cells(reports: ScaleReports, task: str, evaluation: str, train_seeds: Iterable[int]) -> list[Cell]:
    """Every cell that is there, by row, NFE and training seed; the method of its entry is a key of ``ROW_NAMES``.

    Raises:
        UserError: a file is wrong.
    """
    cells = []
    for train_seed in train_seeds:
        folder = reports.study_seed(train_seed)
        for path in (folder / "episodes").glob(f"{evaluation}-*-nfe*.csv"):
            row, _, nfe = path.stem.removeprefix(f"{evaluation}-").rpartition("-nfe")
            cells.append(read_cell(folder, Entry(evaluation, row, int(nfe)), reports.scale, task, train_seed))
    order = list(ROW_NAMES)
    return sorted(cells, key=lambda cell: (order.index(cell.entry.method), cell.entry.nfe, cell.train_seed))


def study_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """A row for each cell, columns as in ``STUDY_HEADER``.

    ``diff_vs_fm`` is the paired difference in max score to ``fm_continued`` at the same NFE and training seed.
    """
    references = {(cell.entry.nfe, cell.train_seed): cell for cell in cells if cell.entry.method == REFERENCE}
    rows = []
    for cell in cells:
        fm = references.get((cell.entry.nfe, cell.train_seed))
        difference = compare([cell], [fm]) if fm and fm is not cell else None
        rows.append(
            cell.row()
            | {"coupling": cell.entry.method, "best_of_k": cell.metrics["best_of_k"]}
            | {"update_ms": cell.metrics.get("update_ms")}
            | tables.interval_columns(difference, "diff_vs_fm", "diff")
        )
    return pd.DataFrame(rows, columns=STUDY_HEADER.split(",")).round(6)


def questions(chosen: Mapping[int, str]) -> list[Question]:
    """The questions that the study was made for, of the couplings ``chosen`` on validation seeds for each NFE."""
    one, two, sixteen = chosen[1], chosen[2], chosen[16]
    fm = (REFERENCE, 16)
    gain = "NFE 1 beats FM continued at NFE 1 by 0.10, interval above 0.05"
    no_loss = "NFE 16 is not below FM continued: mean from -0.01, interval to 0"
    versus_fm = [
        Question(gain, one, 1, REFERENCE, 1, "max_score", at_least=0.1, low_above=0.05),
        Question(no_loss, sixteen, 16, *fm, "max_score", at_least=-0.01, reaches=True),
        Question("NFE 2 reaches FM continued at NFE 16: interval to 0", two, 2, *fm, "max_score", reaches=True),
        Question(
            "NFE 1 reaches that too, spread from 0.8", one, 1, *fm, "max_score", reaches=True, spread_at_least=0.8
        ),
    ]
    versus_baselines = [
        Question(f"NFE {nfe} is at or above {ROW_NAMES[outsider]}", row, nfe, outsider, own, measure, at_least=0.0)
        for nfe, row in ((1, one), (2, two))
        for outsider, own in OWN_NFE.items()
        for measure in ("max_score", "success")
    ]
    more_successes = [
        Question(f"NFE {nfe} succeeds more often than FM continued at NFE 16", row, nfe, *fm, "success", low_above=0.0)
        for nfe, row in sorted(chosen.items())
    ]
    return [*versus_fm, *versus_baselines, *more_successes]


def verdicts(table: pd.DataFrame, train_seeds: Collection[int]) -> dict[str, list[str]]:
    """List the couplings that help, harm or do neither against FM continued, each as ``name (NFE …)``.

    A coupling helps at an NFE if its interval lies above zero with every one of ``train_seeds``, and harms if below;
    where the cell of a training seed is not there yet, it is unfinished.
    """
    at: dict[tuple[str, str], list[str]] = {}
    tuned = table[table["coupling"].map(lambda row: ROW_NAMES[row].startswith("FT")) & table["diff_vs_fm"].notna()]
    for (row, nfe), seeds in tuned.groupby(["coupling", "nfe"], sort=False):
        if set(seeds["train_seed"]) != set(train_seeds):
            verdict = "unfinished"
        elif (seeds["diff_low"] > 0).all():
            verdict = "helps"
        else:
            verdict = "harms" if (seeds["diff_high"] < 0).all() else "neither"
        at.setdefault((verdict, str(row)), []).append(str(nfe))
    return {
        verdict: [
            f"{ROW_NAMES[row].removeprefix('FT, ')} (NFE {', '.join(numbers)})"
            for (found, row), numbers in at.items()
            if found == verdict
        ]
        for verdict in _VERDICTS
    }


def study_answers(cells: Sequence[Cell], chosen: Mapping[int, str]) -> pd.DataFrame:
    """The answers to ``questions``, columns as in ``ANSWERS_HEADER``."""
    rows = [row | {"coupling": row["method"]} for row in answers(cells, questions(chosen))]
    return pd.DataFrame(rows, columns=ANSWERS_HEADER.split(",")).round(6)


def study_markdown(
    table: pd.DataFrame,
    answers: pd.DataFrame,
    train_seeds: Collection[int],
    chosen: Mapping[int, str],
    pictures: Sequence[str],
    title: str,
) -> str:
    """The Markdown twin of the study's ``table`` and ``answers``.

    Args:
        train_seeds: that the study is to have. chosen: NFE → the coupling chosen for it on validation seeds.
        pictures: file names, beside the report. title: of the evaluation.
    """
    first, found = table.iloc[0], verdicts(table, train_seeds)
    recipe = ", ".join(f"{coupling} at NFE {nfe}" for nfe, coupling in sorted(chosen.items()))
    return tables.document(
        f"# Which pairs help? The coupling study, scale `{first['scale']}`",
        _ABOUT,
        f"Scale `{first['scale']}`, data set `{first['dataset']}`, evaluation {title}, "
        f"training seeds {_train_seeds(table)}, {table['n_seeds'].max()} test seeds, one repeat.",
        "## What came out",
        "\n".join(f"- {text}: {'; '.join(found[name])}." for name, text in _VERDICTS.items() if found[name]),
        *(f"![{name}]({name})" for name in pictures),
        "## Against the aims",
        f"*FT-FM* is the coupling chosen for each NFE on validation seeds: {recipe}.",
        tables.markdown_table(_answer_cells(row) for _, row in answers.iterrows())
        or "None of the cells that are asked about are there yet.",
        "*All* averages the training seeds for each test seed: its interval is over test seeds, for these models. "
        "Intervals are not corrected for their number.",
        "## Every cell",
        "*Against FM* is the difference in max score to FM continued at the same NFE and training seed, paired on test "
        "seeds, with its 95 % interval. *Spread* is the samples' spread over that of the base model at NFE 16. "
        "*Best of 16* is the error of the best of 16 samples on held-out observations, in normalised units.",
        tables.markdown_table(_cells(row) for _, row in table.iterrows()),
    )


def _answer_cells(row: pd.Series) -> dict[str, str]:
    return {
        "Aim": row["question"],
        "Measure": row["measure"].replace("_", " "),
        "Training seed": row["train_seed"],
        "Difference": tables.interval_cell(row, "difference", "+.3f", ""),
        "Met": "yes" if row["met"] else "**no**",
    }


def _cells(row: pd.Series) -> dict[str, str]:
    return {
        "Row": ROW_NAMES[row["coupling"]],
        "NFE": str(row["nfe"]),
        "Training seed": str(row["train_seed"]),
        "Max score": shown(row["max_score"]),
        "Success": shown(row["success"], ".1%"),
        "Against FM": tables.interval_cell(row, "diff_vs_fm", "+.3f", "diff"),
        "τ": shown(row["temperature"], "g"),
        "Spread": shown(row["spread_ratio"], ".2f"),
        "Best of 16": shown(row["best_of_k"]),
        "Training steps": str(row["train_steps"]),
        "Precision": row["precision"] or "—",
        "Update, ms": shown(row["update_ms"], ".0f"),
    }


def score_panels(table: pd.DataFrame, path: Path) -> None:
    """Max score, success and spread of every row against NFE; ``path`` with the suffixes .png and .svg.

    Lines join the means over training seeds; small marks are the single training seeds.
    """
    measures = {"max_score": "Max score", "success": "Success rate", "spread_ratio": "Spread ratio"}
    title = f"Couplings against NFE: {_about(table)}\nsmall marks are single training seeds"
    with drawing(path, 11, 4.4, title) as figure:
        for panel, (name, label) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
            drawn = table[~table["coupling"].isin(OWN_NFE)] if name == "spread_ratio" else table
            for row in [row for row in ROW_NAMES if row in set(drawn["coupling"])]:
                _draw_row(panel, drawn[drawn["coupling"] == row], name, row)
            nfe_axis(panel, sorted(table["nfe"].unique()))
            panel.set_xlabel("NFE")
            panel.set_ylabel(label)
            if name == "success":
                in_percent(panel.yaxis)
            if name == "spread_ratio":
                panel.axhline(1.0, color="#555555", linewidth=0.8)


def _draw_row(panel: Axes, rows: pd.DataFrame, name: str, row: str) -> None:
    colour, marker, dash = _LOOK[row]
    means = rows.groupby("nfe")[name].mean()
    panel.plot(
        means.index, means, color=colour, marker=marker, markersize=6, linestyle=dash or "none", label=ROW_NAMES[row]
    )
    panel.plot(rows["nfe"], rows[name], color=colour, marker=marker, markersize=2.5, linestyle="none", alpha=0.6)


def difference_panels(table: pd.DataFrame, path: Path) -> None:
    """The paired difference to FM continued of every cell, with its interval, a panel for each NFE."""
    compared = table[table["diff_vs_fm"].notna() & (table["coupling"] != "fm")]
    rows = [row for row in ROW_NAMES if row in set(compared["coupling"])]
    numbers = sorted(compared["nfe"].unique())
    title = (
        f"Max score against FM continued for equal compute\n{_about(table)}\n"
        "one mark for each training seed, bars are 95 % intervals"
    )
    with drawing(path, 2.0 + 1.9 * len(numbers), 1.4 + 0.42 * len(rows), title, legend=False) as figure:
        panels = figure.subplots(1, len(numbers), sharex=True, sharey=True, squeeze=False)[0]
        for panel, nfe in zip(panels, numbers, strict=True):
            panel.axvline(0.0, color="#555555", linewidth=0.8)
            for height, row in enumerate(rows):
                cells = compared[(compared["coupling"] == row) & (compared["nfe"] == nfe)].sort_values("train_seed")
                colour, marker, _ = _LOOK[row]
                y = height + 0.2 * (np.arange(len(cells)) - (len(cells) - 1) / 2)
                panel.hlines(y, cells["diff_low"], cells["diff_high"], color=colour, linewidth=1.4)
                panel.plot(cells["diff_vs_fm"], y, color=colour, marker=marker, markersize=4, linestyle="none")
            panel.set_title(f"NFE {nfe}")
            panel.set_xlabel("Difference")
        panels[0].set_yticks(range(len(rows)), [ROW_NAMES[row] for row in rows])
        panels[0].invert_yaxis()


def _about(table: pd.DataFrame) -> str:
    first = table.iloc[0]
    return (
        f"{first['evaluation']}, scale {first['scale']}, data set {first['dataset']}, training seeds "
        f"{_train_seeds(table)}, {table['n_seeds'].max()} test seeds"
    )


def _train_seeds(table: pd.DataFrame) -> str:
    return ", ".join(map(str, sorted(table["train_seed"].unique())))
