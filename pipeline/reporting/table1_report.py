"""Report Table 1: methods against solvers, yardsticks, what is missing, and checks of the numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import pandas as pd

from pipeline.reporting.table1 import (
    ADAPTIVE,
    DISTANCE_NAMES,
    IMAGE_METHODS,
    PAPER,
    PAPER_SOLVERS,
    SAMPLE_METRICS,
    Cells,
    Halves,
    bounds,
    checks,
    digits,
    shown_cells,
    table1_rows,
    yardstick,
)
from pipeline.reporting.tables import Request, document, markdown_table, one_of, read_csv, span
from pipeline.settings.images import ImageMethod, ImageTaskSettings
from pipeline.settings.paths import ImageFiles
from pipeline.tasks.images import load_images
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.errors import UserError

METHODS = ("untrained", *get_args(ImageMethod), "ft_fm", "resft_fm")

FEATURES = {
    "embedded": "a small classifier that this project trains on the same data set, so\nthe distance is called FD and "
    "never FID, and no published number can be held against it",
    "inception": "the Inception network that FID is defined by, as\n`torch-fidelity` has it",
}

_PAPER_COLUMNS = ("Paper, Euler 100", "Paper, Euler 1000", "Paper, adaptive (NFE)")

_HOW_TO_READ = """\
{name} is the Fréchet distance between generated and training images, of Gaussians fitted to their features: lower is
better. The features are those of {features}.

A row is one method, a column one way to solve its ODE from noise to image. *Euler k* takes k equal steps, and as many
evaluations of the net (NFE); DDPM takes k ancestral steps there. *Adaptive* is dopri5, with its mean NFE in
parentheses; for DDPM it solves the probability-flow ODE. Its error norm is over the whole batch, so its steps, and
with them its NFE, depend on the batch. Each number is a mean over sampling seeds with Student's 95 % interval over
them: it is about the noise of sampling from this one model, not about training it again.

{facts}"""

_HOW_TO_READ_METRICS = """\
**Kernel distance × 1000, precision, recall** in the same features, means over sampling seeds. The kernel distance (KID)
is lower for better images and has no bias by their number; *precision* is the share of generated images among the real
ones, *recall* the share of real images among the generated, of as many real images."""


def report(asked: Request) -> None:
    """Write the table of one image task, from the distances of single sampling seeds alone."""
    files, reports = ImageFiles(asked.reports.scale, asked.task), asked.reports
    settings = asked.settings.image_task(asked.task)
    there = [files.distances(method) for method in METHODS if files.distances(method).exists()]
    if not there:
        raise UserError(f"{files.reports}: no row of Table 1 is there")
    yardsticks = [path for path in (files.images, files.halves) if path.exists()]
    text = reports.table1.with_suffix(".md")
    with asked.begin(deps=[*yardsticks, *there], outs=[reports.table1, text]):
        table = table1_rows(pd.concat([read_csv(path) for path in there], ignore_index=True))
        halves = yardstick(read_csv(files.halves) if files.halves in yardsticks else None, table)
        expected = {method: _solvers(method, settings) for method in METHODS}
        command = f"make repro SCALE={reports.scale}"
        note = load_images(files.images).note if files.images in yardsticks else ""
        write_csv(reports.table1, table)
        write_text(text, table1_markdown(table, halves, expected=expected, command=command, note=note))


def _solvers(method: str, settings: ImageTaskSettings) -> list[str]:
    """The solvers that a row can have: a residual's own steps leave none of the fewest evaluations for the base."""
    few = {f"euler-{nfe}" for nfe in range(settings.residual.residual_steps + 1)} if method == "resft_fm" else set()
    return [solver for solver in settings.fid.solvers if solver not in few]


def table1_markdown(
    table: pd.DataFrame, halves: Halves | None, *, expected: Mapping[str, Sequence[str]], command: str, note: str = ""
) -> str:
    """The Markdown twin of ``table``, from ``table1_rows``.

    Args:
        halves: of the real data, from ``yardstick``. expected: the solvers (``euler-<k>`` or ``dopri5``) that each
            method is to have, so that what is missing is named. command: that makes the table again, such as
            ``make repro``. note: a remark on the data, printed as it is.

    Raises:
        UserError: ``table`` is of several scales, data sets or kinds of features.
    """
    scale, dataset, features = (one_of(table, column, "table1") for column in ("scale", "dataset", "features"))
    name = DISTANCE_NAMES[str(features)]
    cells = shown_cells(table)
    keys = {solver for _, solver in cells} | {solver for solvers in expected.values() for solver in solvers}
    columns = sorted(keys, key=lambda key: math.inf if key == ADAPTIVE else int(key.removeprefix("euler-")))
    answers = {True: "yes", False: "**no**", None: "unknown"}
    return document(
        f"# Table 1, scale `{scale}`: {name} ({features} features) on `{dataset}`",
        f"`{command}` makes this.",
        _HOW_TO_READ.format(name=name, features=FEATURES[str(features)], facts=_facts(table)),
        note,
        _paper_note(table, cells, name),
        _wide_table(cells, columns, halves),
        _yardsticks(halves),
        _sample_metrics(table, cells, columns),
        _models(cells, columns),
        _missing(cells, expected, halves),
        "## Checks",
        "Computed from the numbers above.",
        markdown_table(
            [(check.question, check.numbers, answers[check.holds]) for check in checks(table, halves)],
            ["Check", "Numbers", "Holds"],
        ),
    )


def _facts(table: pd.DataFrame) -> str:
    facts = (
        f"Data set `{table['dataset'].iloc[0]}`, {span(table['n_samples'])} images for each number, "
        f"{span(table['sampling_seeds'])} sampling seeds, training seed {', '.join(table['train_seeds'].unique())}."
    )
    if table["n_samples"].nunique() > 1:
        facts += (
            " **The numbers of images differ**, and fewer images raise the distance: compare at equal numbers only."
        )
    return facts


def _paper_note(table: pd.DataFrame, cells: Cells, name: str) -> str:
    parts = []
    if any(text.endswith("*") for method in table["method"].unique() for text in _paper_cells(method, cells)):
        which = "Those of the paper's FIDs with * are" if table["paper_comparable"].any() else "The paper's FIDs are"
        parts.append(
            f"**{which} not comparable with the {name} here.** They are quoted for orientation, with *: they come from "
            "CIFAR-10, Inception features, 50 000 images, and other net sizes or training lengths."
        )
    if "ve_fm" in set(table["method"]):
        parts.append("The paper's table has no VE-FM: its text says variance exploding where its table says VP.")
    return "\n".join(parts)


def _column_name(solver: str) -> str:
    return "Adaptive" if solver == ADAPTIVE else f"Euler {solver.removeprefix('euler-')}"


def _wide_table(cells: Cells, columns: Sequence[str], halves: Halves | None) -> str:
    heads = [_column_name(solver) + (" (NFE)" if solver == ADAPTIVE else "") for solver in columns]
    lines = []
    for method, pretty in IMAGE_METHODS.items():
        of_method = [row for (name, _), row in cells.items() if name == method]
        if not of_method:
            continue
        steps = span(pd.Series([row["train_steps"] for row in of_method]))
        precision = ", ".join(sorted({row["precision"] for row in of_method if row["precision"]})) or "—"
        distances = [_distance(cells.get((method, solver))) for solver in columns]
        lines.append([pretty, steps, precision, *distances, *_paper_cells(method, cells)])
    if halves is not None:
        # the same in every column: a floor for each of them
        floor = digits(halves.mean) + ("" if np.isnan(halves.std) else f" ± {digits(halves.std)}")
        lines.append(["Two halves of the real data", "—", "—", *[floor] * len(columns), *["—"] * len(_PAPER_COLUMNS)])
    return markdown_table(lines, ["Method", "Training steps", "Precision", *heads, *_PAPER_COLUMNS])


def _distance(row: pd.Series | None) -> str:
    if row is None:
        return "—"
    text = f"{digits(row['distance'])} {bounds(row)}"
    return f"{text} ({row['nfe']:.1f})" if row["solver"] == ADAPTIVE else text


def _paper_cells(method: str, cells: Cells) -> list[str]:
    """The paper's numbers, with * where the number here is another thing, or not there."""
    if method not in PAPER:
        return ["—"] * len(_PAPER_COLUMNS)
    *fids, nfe = PAPER[method]
    texts = []
    for solver, fid in zip(PAPER_SOLVERS, fids, strict=True):
        row = cells.get((method, solver))
        star = "" if row is not None and row["paper_comparable"] else " *"
        evaluations = f" ({nfe:g})" if solver == ADAPTIVE else ""
        texts.append("—" if np.isnan(fid) else f"{fid:g}{evaluations}{star}")
    return texts


def _yardsticks(halves: Halves | None) -> str:
    if halves is None:
        return ""
    return (
        f"*Two halves of the real data* is the distance between disjoint halves of {halves.n_samples} real images "
        f"each, mean ± standard deviation over {halves.splits} random splits. No solver has a part in it: "
        "it is about what images as good as real ones would get, with as few of them."
    )


def _sample_metrics(table: pd.DataFrame, cells: Cells, columns: Sequence[str]) -> str:
    if not set(SAMPLE_METRICS) & set(table.columns):
        return ""
    lines = [
        [IMAGE_METHODS[method], *(_metrics_cell(cells.get((method, solver))) for solver in columns)]
        for method in dict.fromkeys(table["method"])
    ]
    return f"{_HOW_TO_READ_METRICS}\n\n{markdown_table(lines, ['Method', *map(_column_name, columns)])}"


def _metrics_cell(row: pd.Series | None) -> str:
    if row is None or np.isnan(row["kid"]):
        return "—"
    return f"{1000 * row['kid']:.2f}, {row['sample_precision']:.3f}, {row['sample_recall']:.3f}"


def _models(cells: Cells, columns: Sequence[str]) -> str:
    """List the fine-tuned model of each number."""
    lines = []
    for method, pretty in IMAGE_METHODS.items():
        by_model: dict[int, list[str]] = {}
        for solver in columns:
            row = cells.get((method, solver))
            if row is not None and row["finetuned_nfe"]:
                by_model.setdefault(int(row["finetuned_nfe"]), []).append(_column_name(solver))
        if by_model:
            models = [f"fine-tuned for NFE {nfe} under {', '.join(where)}" for nfe, where in sorted(by_model.items())]
            lines.append(f"- {pretty}: the model {'; '.join(models)}.")
    return "\n".join(["**Which model**", "", *lines]) if lines else ""


def _missing(cells: Cells, expected: Mapping[str, Sequence[str]], halves: Halves | None) -> str:
    lines = []
    for method, solvers in expected.items():
        absent = [_column_name(solver) for solver in solvers if (method, solver) not in cells]
        if absent:
            what = "all solvers" if len(absent) == len(solvers) else ", ".join(absent)
            lines.append(f"- {IMAGE_METHODS[method]}: {what}.")
    if halves is None:
        lines.append("- Two halves of the real data.")
    reason = "their evaluation, or a stage before it, has not finished:"
    return "\n".join([f"**Missing**, since {reason}", "", *lines]) if lines else ""
