"""The measurement of how a worker pool scales, on tiny sizes."""

from pathlib import Path

import pandas as pd

from pipeline.orchestration import scaling


def test_table_has_rows_for_each_measured_size(tmp_path: Path) -> None:
    for rows in (scaling.measure_run_cache((2, 5)), scaling.measure_mlflow((1, 3)), scaling.measure_run_cache((2, 6))):
        scaling.write(tmp_path, scaling.table_of(rows))
    table = pd.read_csv(tmp_path / "scaling.csv")
    assert table.groupby("part", sort=False)["size"].unique().map(list).to_dict() == {
        "run cache": [2, 6],
        "MLflow": [1, 3],
    }
    assert (table["value"] >= 0).all() and table["machine"].nunique() == 1
    assert "| by runs at the remote | 2 | 6 |" in (tmp_path / "scaling.md").read_text(encoding="utf-8")
