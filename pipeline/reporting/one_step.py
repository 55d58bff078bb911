"""Report the one-step study: who is best at one evaluation, and at two and sixteen, on many tasks."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation.aggregate import Runs, interquartile_mean, performance_profile, probability_of_improvement
from pipeline.evaluation.statistics import shown
from pipeline.reporting import tables
from pipeline.reporting.cells import MEASURES, Cell, Question, answers, read_cell
from pipeline.reporting.figures import drawing
from pipeline.settings.one_step import METHODS
from pipeline.settings.paths import Entry, ScaleReports
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.errors import UserError

ONE_STEP_HEADER = (
    "task,evaluation,method,nfe,temperature,train_seed,n_seeds,max_score,success,spread_ratio,ms_per_plan,train_passes,"
    "scale,dataset,train_steps,validation_max_score,validation_success,precision"
)
ANSWERS_HEADER = "question,task,method,nfe,against,against_nfe,measure,train_seed,n_seeds,difference,low,high,met"
AGGREGATES_HEADER = (
    "method,nfe,measure,tasks,iqm,iqm_low,iqm_high,ft_fm_nfe,improvement_of_ft_fm,improvement_low,improvement_high"
)


_HOW_TO_READ = """\
One row is one trained model at one number of function evaluations (NFE), rolled out once per test seed. All methods
have the same net, data and compute, counted in passes of the net: those that go on from the base model have its
training and the study's budget, the others start from random weights and have both. Of each method the best of its
checkpoints, and of the temperatures tried, was taken on validation seeds by the mean of score and success; test seeds
chose nothing.
*τ* is that temperature, the factor of the noise that solves start from; *spread* is that of the samples over the base
model's at NFE 16 and temperature 1; *ms* is the median time of a plan for one observation, all methods one after
another on the machine that `one_step/<task>/times.json` names.

- *FM base* is the flow-matching model, *FM continued* the same trained on, *FT-FM* fine-tuned by maximum likelihood for
  its NFE. *Regression* is behaviour cloning. *MIP* (arXiv 2512.01809) guesses and mends. *IMLE* (IMLE Policy, arXiv
  2502.12371) pulls the nearest of 20 samples. *Drifting* (arXiv 2602.04770, 2604.03540) moves samples along a drift.
  *Flow map (LSD)* (arXiv 2505.18825) learns steps of any length. Where each departs from its authors' code is said in
  `pipeline/training/one_step_baselines.py` and `flow_map.py`."""
_LOOK = {  # Okabe and Ito's palette; marker tells the methods apart where colour does not
    "fm": ("#999999", "o"),
    "fm_continued": ("#000000", "o"),
    "ft_fm": ("#D55E00", "s"),
    "regression": ("#F0E442", "*"),
    "mip": ("#009E73", "X"),
    "imle": ("#56B4E9", "v"),
    "drifting": ("#CC79A7", "^"),
    "lsd": ("#0072B2", "D"),
}


def report(asked: tables.Request) -> None:
    """Write the tables, the report and the pictures of the cells of all scales that are there."""
    folder, scales = asked.reports.folder, [asked.reports.scale, *asked.others]
    csvs = [folder / f"{name}.csv" for name in ("one_step", "one_step_answers", "one_step_aggregates")]
    pictures = [folder / f"{name}.png" for name in ("one_step", "one_step_aggregates", "one_step_profiles")]
    text, there = folder / "one_step.md", [ScaleReports(scale).one_step for scale in scales]
    with asked.begin(deps=[path for path in there if path.exists()], outs=[*csvs, text, *pictures]):
        cells = read_cells(scales)
        if not cells:
            raise UserError(f"{asked.reports.one_step}: holds no cell; run `make study`")
        compared, incomplete = comparable(cells)
        table, shown_table, aggregated = one_step_table(cells), one_step_table(compared), aggregates(compared)
        answered = pd.DataFrame(answers(cells, questions()), columns=ANSWERS_HEADER.split(",")).round(6)
        for path, written in zip(csvs, (table, answered, aggregated), strict=True):
            write_csv(path, written)
        draw_against_time(shown_table, pictures[0])
        draw_aggregates(aggregated, shown_table, pictures[1])
        draw_profiles(compared, shown_table, pictures[2])
        names = [path.name for path in pictures]
        write_text(text, one_step_markdown(table, answered, aggregated, names, incomplete))


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
            cells.append(read_cell(folder, Entry(evaluation, method, int(nfe)), scale, task, int(seed)))
    order, tasks = list(METHODS), list(dict.fromkeys(cell.task for cell in cells))
    return sorted(
        cells,
        key=lambda cell: (tasks.index(cell.task), order.index(cell.entry.method), cell.entry.nfe, cell.train_seed),
    )


def comparable(cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """Split off the tasks where some method has not run yet: means over them would compare methods on different tasks.

    Returns:
        The cells of the tasks that have every method and NFE of the task with the most, and the names of the others.
    """
    keys: dict[str, set[tuple[str, int]]] = {}
    for cell in cells:
        keys.setdefault(cell.task, set()).add(cell.key)
    most = max(keys.values(), key=len)
    whole = {task for task, found in keys.items() if found >= most}
    return [cell for cell in cells if cell.task in whole], [task for task in keys if task not in whole]


def _times(cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, float]]:
    """Milliseconds a plan by scale and task, then by method and NFE; none where they have not been measured."""
    files = {(cell.scale, cell.task): ScaleReports(cell.scale).one_step_times(cell.task) for cell in cells}
    return {
        key: json.loads(path.read_text(encoding="utf-8"))["ms_per_plan"] if path.exists() else {}
        for key, path in files.items()
    }


def one_step_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """A row for each cell, columns as in ``ONE_STEP_HEADER``."""
    times, copied = _times(cells), ("train_passes", "validation_max_score", "validation_success")
    rows = [
        cell.row()
        | {name: cell.metrics[name] for name in copied}
        | {"ms_per_plan": times[cell.scale, cell.task].get(f"{cell.entry.method}-nfe{cell.entry.nfe}", math.nan)}
        for cell in cells
    ]
    return pd.DataFrame(rows, columns=ONE_STEP_HEADER.split(",")).round(6)


def questions() -> list[Question]:
    """The questions that the study was made for, fixed before any test seed was run."""
    better = [(1, method, 1) for method in ("fm_continued", "regression", "imle", "drifting", "lsd")]
    better += [(1, "mip", 2), (2, "mip", 2), (2, "lsd", 2)]
    as_good = [(1, "fm", 16), (2, "fm", 16), (16, "fm", 16), (16, "fm_continued", 16)]
    return [
        Question(
            f"FT-FM at NFE {nfe} is {kind} {METHODS[against].title} at NFE {its} in {measure.replace('_', ' ')}",
            *("ft_fm", nfe, against, its, measure),
            low_above=0.0 if kind == "above" else -math.inf,
            reaches=kind == "not below",
        )
        for pairs, kind in ((better, "above"), (as_good, "not below"))
        for nfe, against, its in pairs
        for measure in MEASURES
    ]


def aggregates(cells: Sequence[Cell]) -> pd.DataFrame:
    """Over tasks: each method's interquartile mean, and how probable it is that ``ft_fm`` improves on it.

    ``ft_fm`` is taken at the method's NFE, and at NFE 1 against MIP, which has only two. Tasks that lack either are
    left out of the comparison.
    """
    rows: list[dict[str, object]] = []
    for method, nfe in dict.fromkeys(cell.key for cell in cells):
        for measure in MEASURES:
            our_nfe = 1 if method == "mip" else nfe
            runs, ours = runs_of(cells, method, nfe, measure), runs_of(cells, "ft_fm", our_nfe, measure)
            common = [task for task in runs if task in ours]
            row: dict[str, object] = {"method": method, "nfe": nfe, "measure": measure, "tasks": len(runs)}
            row |= tables.interval_columns(interquartile_mean(runs), "iqm")
            if common and method != "ft_fm":
                better = probability_of_improvement({t: ours[t] for t in common}, {t: runs[t] for t in common})
                row["ft_fm_nfe"] = our_nfe
                row |= tables.interval_columns(better, "improvement_of_ft_fm", "improvement")
            rows.append(row)
    return pd.DataFrame(rows, columns=AGGREGATES_HEADER.split(",")).round(6)


def runs_of(cells: Sequence[Cell], method: str, nfe: int, measure: str) -> Runs:
    """The scores of a method by task, of each training seed."""
    runs: dict[str, list[NDArray[np.float64]]] = {}
    for cell in cells:
        if cell.key == (method, nfe):
            runs.setdefault(cell.task, []).append(cell.scores[measure].to_numpy(dtype=np.float64))
    return runs


def one_step_markdown(
    table: pd.DataFrame,
    answered: pd.DataFrame,
    aggregated: pd.DataFrame,
    pictures: Sequence[str],
    incomplete: Sequence[str],
) -> str:
    """Return the report: aggregates, answers, and every cell."""
    tasks = table["task"].nunique() - len(incomplete)
    left_out = f"Not in the pictures and not in this table, since methods are missing there: {', '.join(incomplete)}."
    return tables.document(
        "# The one-step study",
        _HOW_TO_READ,
        *(f"![{name}]({name})" for name in pictures),
        f"## Over {tasks} {'task' if tasks == 1 else 'tasks'}",
        "*IQM* is the interquartile mean over tasks. The last column is the probability that a run of FT-FM scores "
        "higher than one of this method on a random task, ties counting half. 95 % intervals are of a bootstrap over "
        "training seeds and test seeds.",
        tables.markdown_table(_aggregate_cells(row) for _, row in aggregated.iterrows()),
        left_out if incomplete else "",
        "## Answers",
        "Differences are paired on test seeds. *all* averages training seeds for each test seed first.",
        tables.markdown_table(_answer_cells(row) for _, row in answered.iterrows()) or "None yet.",
        "## Every cell",
        tables.markdown_table(_cells(row) for _, row in table.iterrows()),
    )


def _aggregate_cells(row: pd.Series) -> dict[str, str]:
    better = tables.interval_cell(row, "improvement_of_ft_fm", ".2f", "improvement")
    versus = "" if better == "—" else f" (FT-FM at NFE {row['ft_fm_nfe']:.0f})"
    return {
        "Method": METHODS[row["method"]].title,
        "NFE": str(row["nfe"]),
        "Measure": row["measure"].replace("_", " "),
        "Tasks": str(row["tasks"]),
        "IQM": tables.interval_cell(row, "iqm"),
        "FT-FM improves on it": better + versus,
    }


def _answer_cells(row: pd.Series) -> dict[str, str]:
    return {
        "Question": row["question"],
        "Task": row["task"],
        "Training seed": row["train_seed"],
        "Test seeds": str(row["n_seeds"]),
        "Difference": tables.interval_cell(row, "difference", "+.3f", ""),
        "So": "yes" if row["met"] else "**no**",
    }


def _cells(row: pd.Series) -> dict[str, str]:
    return {
        "Task": row["task"],
        "Evaluation": row["evaluation"],
        "Method": METHODS[row["method"]].title,
        "NFE": str(row["nfe"]),
        "τ": shown(row["temperature"], "g"),
        "Training seed": str(row["train_seed"]),
        "Max score": shown(row["max_score"]),
        "Success": shown(row["success"], ".1%"),
        "Spread": shown(row["spread_ratio"], ".2f"),
        "ms": shown(row["ms_per_plan"], ".2f"),
        "Passes, millions": shown(row["train_passes"] / 1e6, ".1f"),
        "Test seeds": str(row["n_seeds"]),
        **tables.training_cells(row),
    }


def draw_against_time(table: pd.DataFrame, path: Path) -> None:
    """Score and success against milliseconds a plan, means over tasks and training seeds; ``path`` as .png and .svg."""
    means = table.groupby(["method", "nfe"])[[*MEASURES, "ms_per_plan"]].mean().reset_index()
    with drawing(path, 9, 4, _about(table)) as figure:
        for panel, measure in zip(figure.subplots(1, len(MEASURES)), MEASURES, strict=True):
            for method in [method for method in METHODS if method in set(means["method"])]:
                rows = means[means["method"] == method].sort_values("nfe")
                colour, marker = _LOOK[method]
                panel.plot(rows["ms_per_plan"], rows[measure], color=colour, marker=marker, label=METHODS[method].title)
                for _, row in rows.iterrows():
                    panel.annotate(
                        f"{row['nfe']:.0f}",
                        (row["ms_per_plan"], row[measure]),
                        textcoords="offset points",
                        xytext=(4, 4),
                        fontsize=7,
                        color=colour,
                    )
            panel.set_xscale("log")
            panel.set_xlabel("Milliseconds a plan")
            panel.set_ylabel(measure.replace("_", " ").capitalize())


def draw_aggregates(aggregated: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    """The interquartile mean of every method and NFE with its interval, by measure; ``path`` as .png and .svg."""
    names = list(dict.fromkeys(zip(aggregated["method"], aggregated["nfe"], strict=True)))
    title = _about(table) + "; bars are 95 % intervals"
    with drawing(path, 9, 1.2 + 0.28 * len(names), title, legend=False) as figure:
        for panel, measure in zip(figure.subplots(1, len(MEASURES), sharey=True), MEASURES, strict=True):
            rows = aggregated[aggregated["measure"] == measure]
            heights = np.arange(len(rows))
            colours = [_LOOK[method][0] for method in rows["method"]]
            panel.hlines(heights, rows["iqm_low"], rows["iqm_high"], color=colours, linewidth=1.6)
            panel.scatter(rows["iqm"], heights, color=colours, s=18, zorder=2)
            panel.set_yticks(heights, [f"{METHODS[method].title}, NFE {nfe}" for method, nfe in names])
            panel.set_xlabel(f"{measure.replace('_', ' ').capitalize()}, interquartile mean over tasks")
        figure.axes[0].invert_yaxis()


def draw_profiles(cells: Sequence[Cell], table: pd.DataFrame, path: Path) -> None:
    """The performance profile of each method at its fewest evaluations, with bands; ``path`` as .png and .svg."""
    thresholds = np.linspace(0, 1, 101)
    with drawing(path, 7, 4, _about(table) + "; bands are 95 % intervals") as figure:
        panel = figure.subplots()
        for method in [method for method in METHODS if method in set(table["method"])]:
            nfe = int(table.loc[table["method"] == method, "nfe"].min())
            share, low, high = performance_profile(runs_of(cells, method, nfe, "max_score"), thresholds)
            colour, _ = _LOOK[method]
            panel.plot(thresholds, share, color=colour, label=f"{METHODS[method].title}, NFE {nfe}")
            panel.fill_between(thresholds, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xlabel("Max score, at least")
        panel.set_ylabel("Share of episodes, mean over tasks")


def _about(table: pd.DataFrame) -> str:
    tasks, seeds = table["task"].nunique(), table.groupby(["task", "method"])["train_seed"].nunique()
    return f"{tasks} {'task' if tasks == 1 else 'tasks'}, training seeds of a method: {tables.span(seeds)}"
