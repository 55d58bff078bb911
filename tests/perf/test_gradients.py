"""The benchmark of gradients runs and writes its table."""

from pathlib import Path

import pandas as pd
import torch

from pipeline.perf.gradients import AIMS, measure, saved_bytes, write
from pipeline.settings import schema
from pipeline.utils.code_deps import ROOT


def test_saved_bytes_counts_each_tensor_once_and_no_ignored_one() -> None:
    weight, x = torch.ones(3, 3, requires_grad=True), torch.ones(5, 3)
    with saved_bytes([weight]) as saved:
        loss = ((x @ weight) * x).tanh()  # keeps x, twice, and its own result
    assert saved.total == x.nbytes + loss.nbytes


def test_every_gradient_is_measured_at_every_nfe_and_checkpoints_grow_by_one_state_per_step(tmp_path: Path) -> None:
    settings = schema.load(ROOT / "params.yaml").lab.pusht
    small = settings.net.model_copy(update={"width": 16, "depth": 1})
    rows = measure(settings.model_copy(update={"net": small}), batch_size=4, turns=2, nfes=(2, 3, 6))
    assert [(row.pairs, row.gradient, row.nfe) for row in rows] == [(*kind, nfe) for kind in AIMS for nfe in (2, 3, 6)]
    assert all(row.update_ratio_low <= row.update_ratio <= row.update_ratio_high for row in rows)
    saved = {(row.gradient, row.nfe): row.saved_bytes for row in rows if row.pairs == "given"}
    state = 4 * settings.data.horizon * 2 * 4
    assert saved["checkpointed", 6] - saved["checkpointed", 3] == 3 * state
    assert saved["checkpointed", 3] - saved["checkpointed", 2] == state
    assert saved["direct", 6] - saved["direct", 3] == 3 * (saved["direct", 3] - saved["direct", 2]) > 3 * state

    write(tmp_path, rows, "# About\n")
    table = pd.read_csv(tmp_path / "benchmarks_gradients.csv")
    assert table["saved_bytes"].tolist() == [row.saved_bytes for row in rows]
    assert table["pairs"].tolist() == [row.pairs for row in rows]
    assert table["aim"].dropna().tolist() == 3 * [AIMS["given", "direct"]] + 3 * [AIMS["given", "checkpointed"]]
    text = (tmp_path / "benchmarks_gradients.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == len(rows) + 2  # heads and rule
