"""Draw Figure 2(b), scores while fine-tuning, and the score of each method against NFE."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.figures import band, draw_methods, drawing, in_percent, line, nfe_axis, write_note
from pipeline.reporting.tables import (
    NO_TITLES,
    Request,
    evaluation_titles,
    one_of,
    read_csv,
    require,
    span,
    task_titles,
)
from pipeline.settings.paths import ScaleReports, TaskFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.utils.errors import UserError

HISTORY_HEADER = (
    "scale,task,dataset,method,nfe,train_seed,step,epoch,max_score,max_score_low,max_score_high,"
    "success,success_low,success_high,n_seeds,loss,spread_ratio,best_of_k,reconstruction_error"
)
SCORES_HEADER = (
    "evaluation,method,nfe,scale,dataset,train_seeds,n_seeds,max_score,max_score_low,max_score_high,"
    "success,success_low,success_high"
)
_SCORES = {"max_score": "Max score", "success": "Success rate"}
_ERRORS = {"reconstruction_error": "Error", "best_of_k": "Error of the best of 16"}
"""Columns that a history is drawn by, and the axes' names: of tasks with a simulation, and of offline ones."""

_COLUMNS = 5
"""Evaluations side by side; more go below."""


def report(asked: Request) -> None:
    """Draw both figures of one scale, of Table 2 and of the histories of fine-tuning."""
    settings, reports, blocks = asked.settings, asked.reports, asked.settings.chosen()
    with asked.begin(deps=[reports.table2, reports.history], outs=[reports.figure_2b, reports.score_vs_nfe]):
        simulated = [task for task in blocks if task not in settings.offline]
        if simulated:
            table = read_csv(reports.table2, SCORES_HEADER, "run tabulate again")
            score_vs_nfe(table, reports.score_vs_nfe, evaluation_titles(blocks))
        else:
            write_note("No task with environments was chosen: see offline/", reports.score_vs_nfe)
        files = histories(reports.scale, settings, [*simulated, *settings.offline])
        history = pd.concat([read_csv(path, HISTORY_HEADER) for path in files], ignore_index=True)
        figure_2b(history, reports.figure_2b, task_titles(blocks))


def histories(scale: str, settings: ScaleSettings, tasks: Sequence[str]) -> list[Path]:
    """List the histories of Figure 2(b): those of the first of ``tasks`` that has any.

    Raises:
        UserError: none has those of both methods at one NFE.
    """
    for task in tasks:
        files = []
        for nfe in settings.nfe:
            pair = [TaskFiles(scale, task).history(method, nfe) for method in ("fm", "ft_fm")]
            absent = [str(path) for path in pair if not path.exists()]
            if absent:  # after a failed run
                print(f"warning: Figure 2b leaves out NFE {nfe}: {', '.join(absent)} not found", file=sys.stderr)
            else:
                files += pair
        if files:
            return files
    folder = ScaleReports(scale).history
    raise UserError(f"{folder}: no NFE has the histories of both fm and ft_fm; Figure 2b needs them")


def figure_2b(history: pd.DataFrame, path: Path, titles: Mapping[str, str] = NO_TITLES) -> None:
    """Score, success and diversity while fine-tuning, next to plain FM training from the same checkpoint; of an offline
    task, errors on held-out episodes in place of score and success.

    ``history`` (columns as in ``HISTORY_HEADER``, one task and one training seed) holds the branches ``ft_fm`` and
    ``fm``, both from epoch 0 on. Writes ``path`` with the suffixes ``.png`` and ``.svg``.

    An FM epoch is cheaper than one of fine-tuning. Where the branches differ in epochs, the FM branch is drawn
    compressed, so that the same place on the axis means the same compute.

    Raises:
        UserError: a column or a branch is missing, or there are several tasks or training seeds.
    """
    require(history, HISTORY_HEADER, "history")
    scale, task, dataset, seed = (
        one_of(history, column, "history") for column in ("scale", "task", "dataset", "train_seed")
    )
    numbers = sorted(history["nfe"].unique())
    simulated = bool((history["n_seeds"] > 0).any())
    names = _SCORES if simulated else _ERRORS
    points = "Held-out episodes that are not reported on"
    if simulated:
        points = f"{span(history['n_seeds'])} validation seeds per point, bands are 95 % intervals"
    title = (
        f"{titles.get(str(task), task)}: fine-tuning and FM continued, from one checkpoint\n"
        f"scale {scale}, data set {dataset}, training seed {seed}\n{points}"
    )
    with drawing(path, 1.2 + 3.6 * len(numbers), 7.4, title) as figure:
        panels = figure.subplots(3, len(numbers), sharex="col", sharey="row", squeeze=False)
        for column, nfe in zip(panels.T, numbers, strict=True):
            _draw_branches(column, history[history["nfe"] == nfe], nfe, tuple(names))
        for panel, label in zip(panels[:, 0], (*names.values(), "Spread ratio"), strict=True):
            panel.set_ylabel(label)
        if simulated:
            in_percent(panels[1, 0].yaxis)


def _draw_branches(column: Sequence[Axes], history: pd.DataFrame, nfe: int, names: Sequence[str]) -> None:
    *above, spread = column
    branches = {method: rows.sort_values("epoch") for method, rows in history.groupby("method")}
    for method in ("fm", "ft_fm"):
        if method not in branches:
            raise UserError(f"history: method {method} is missing at NFE {nfe}")
    epochs_in_all = branches["ft_fm"]["epoch"].max()
    stretch = branches["fm"]["epoch"].max() / epochs_in_all if epochs_in_all > 0 else 1.0
    for method in ("fm", "ft_fm"):
        rows = branches[method]
        epochs = rows["epoch"] / (stretch if method == "fm" else 1.0)
        for panel, name in zip(above, names, strict=True):
            line(panel, epochs, rows[name], method)
            if f"{name}_low" in rows:
                band(panel, epochs, rows[f"{name}_low"], rows[f"{name}_high"], method)
        line(spread, epochs, rows["spread_ratio"], method)
    spread.axhline(1.0, color="#555555", linewidth=0.8)
    above[0].set_title(f"NFE {nfe}")
    spread.set_ylim(bottom=0.0)
    spread.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=bool(epochs_in_all >= 1)))
    equal_compute = f"\n(each as much compute as {stretch:.3g} of FM continued)"
    spread.set_xlabel("Fine-tuning epoch" + (equal_compute if abs(stretch - 1) > 0.01 else ""))


def score_vs_nfe(table: pd.DataFrame, path: Path, titles: Mapping[str, str] = NO_TITLES) -> None:
    """Max score and, below it, success of each method against NFE, one column per evaluation.

    ``table`` holds rows of Table 2. Writes ``path`` with the suffixes ``.png`` and ``.svg``.

    Raises:
        UserError: there are no rows, or a column is missing.
    """
    require(table, SCORES_HEADER, "table2")
    evaluations = list(dict.fromkeys(table["evaluation"]))
    numbers = sorted(set(table["nfe"]) - {0})
    bands, columns = math.ceil(len(evaluations) / _COLUMNS), min(len(evaluations), _COLUMNS)
    title = (
        f"Score and success against NFE\nscale {_list(table['scale'])}, data set {_list(table['dataset'])}, "
        f"training seed {_list(table['train_seeds'])}\n{span(table['n_seeds'])} test seeds, bars are 95 % intervals"
    )
    with drawing(path, 1.2 + 3.6 * columns, 0.6 + 5.0 * bands, title) as figure:
        panels = figure.subplots(2 * bands, columns, sharex=True, sharey="row", squeeze=False)
        pairs = [(panels[2 * row, i], panels[2 * row + 1, i]) for row in range(bands) for i in range(columns)]
        for pair, evaluation in zip(pairs, evaluations, strict=False):
            for panel, name in zip(pair, _SCORES, strict=True):
                draw_methods(panel, table[table["evaluation"] == evaluation], name)
            pair[0].set_title(titles.get(evaluation, evaluation))
            pair[1].set_xlabel("NFE (function evaluations per action chunk)")
            pair[1].tick_params(labelbottom=True)
        for panel in panels.flat:
            nfe_axis(panel, numbers)
        for first in pairs[::columns]:
            for panel, label in zip(first, _SCORES.values(), strict=True):
                panel.set_ylabel(label)
            in_percent(first[1].yaxis)
        for pair in pairs[len(evaluations) :]:
            for panel in pair:
                panel.remove()


def _list(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(values.astype(str)))
