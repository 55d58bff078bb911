"""The one-step report compares methods only on tasks where all of them have run."""

import pandas as pd

from pipeline.reporting.cells import Cell
from pipeline.reporting.one_step import aggregates, comparable
from pipeline.settings.paths import Entry


def cell(task: str, method: str, nfe: int, score: float) -> Cell:
    scores = pd.Series([score, score], index=[100_000, 100_001])
    return Cell("lab", task, Entry(task, method, nfe), 0, {"max_score": scores, "success": scores}, {})


def test_means_leave_out_tasks_where_a_method_is_missing() -> None:
    rows = [("fm", 1), ("ft_fm", 1), ("regression", 1)]
    cells = [cell(task, *row, 0.5) for task in ("square", "transport") for row in rows]
    cells += [cell("push", "regression", 1, 1.0), cell("peg", "fm", 1, 1.0), cell("peg", "regression", 1, 1.0)]
    compared, incomplete = comparable(cells)
    assert incomplete == ["push", "peg"]
    aggregated = aggregates(compared)
    assert set(aggregated["tasks"]) == {2} and set(aggregated["iqm"]) == {0.5}
