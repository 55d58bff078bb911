"""The benchmark of certificates runs and writes its table."""

from pathlib import Path

import pandas as pd

from pipeline.perf.certificates import RATIO, measure, write


def test_every_chunk_is_certified_whole_and_by_its_block(tmp_path: Path) -> None:
    rows = measure([("Tiny", 4, 2)])
    assert [(row.state, row.states, row.status) for row in rows] == [
        ("chunk", 8, "certified"),
        ("action", 2, "certified"),
    ]
    assert rows[1].ratio <= rows[0].ratio == RATIO
    write(tmp_path, rows, "# About\n")
    assert pd.read_csv(tmp_path / "benchmarks_certificates.csv")["chunk"].tolist() == [8, 8]
    assert (tmp_path / "benchmarks_certificates.md").read_text(encoding="utf-8").count("\n| ") == 4
