"""Counts of operations, and shares of the measured peak."""

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.nets.mlp import MLP
from pipeline.perf import peak
from pipeline.perf.updates import flow_matching, random_batch
from pipeline.utils import precision
from pipeline.utils.seeding import Generators


def test_operations_of_a_matrix_product_and_its_gradients() -> None:
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    assert peak.operations(lambda: (a @ b).sum().backward()) == 3 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("has_bf16", [True, False])
def test_works_of_a_small_net_are_measured(has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda _kind: has_bf16)
    net = MLP(16, 2, 36, width=8, depth=1, expansion=2, time_features=8)
    batch = random_batch(4, 16, 2, condition_dim=36)
    works = [
        *peak._updates("step", flow_matching(net, Generators(0)), *batch),
        peak._sampling("sampling", net, 2),
    ]
    table = peak.measure(works, gemm=128)
    assert list(table["precision"]) == (["fp32", "bf16", "fp32"] if has_bf16 else ["fp32", "fp32"])
    assert (table[["gflop", "ms", "peak_gflop_per_s"]] > 0).all(axis=None)
    assert table["share_of_peak"].between(0, 1, inclusive="neither").all()
    peak.write(tmp_path, table, "# About\n")
    assert len(pd.read_csv(tmp_path / "benchmarks_peak.csv")) == len(table)
    assert "| sampling | fp32 |" in (tmp_path / "benchmarks_peak.md").read_text(encoding="utf-8")


def test_every_work_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "step_seconds", partial(pytest.fail, "not timed here"))
    counts = {work.name: work.operations() for work in peak.works(4, 1, 4) if "the paper's" not in work.name}
    step, mle = (count for name, count in counts.items() if "lab's mlp" in name and "sampling" not in name)
    assert mle == pytest.approx(16 * step, rel=0.1)
