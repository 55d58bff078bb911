"""Growth of time and memory with size: measurements, slopes and files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.perf import growth
from pipeline.utils.code_deps import ROOT


def test_slopes_are_powers_of_the_size() -> None:
    sizes = [10, 100, 1000]
    table = pd.DataFrame(
        [("mle-batch", "", "", n, "", 0.1 * n**2, 5.0 * n) for n in sizes]
        + [("fid-samples", "", "", n, "", 3.0 * n, 0.2) for n in sizes],
        columns=["name", "work", "size_of", "size", "machine", "ms", "peak_mb"],
    )
    found = growth.slopes(table).set_index("name")
    assert found.loc["mle-batch", "time_slope"] == pytest.approx(2)
    assert found.loc["mle-batch", "memory_slope"] == pytest.approx(1)
    assert found.loc["fid-samples", "time_slope"] == pytest.approx(1)
    assert found.loc["fid-samples", "memory_slope"] == pytest.approx(0)


def test_memory_is_the_peak_held_by_the_work() -> None:
    program = """
from pipeline.perf import growth
from pipeline.utils.code_deps import ROOT
axis = growth.Axis("holds memory", "MB", (8,), lambda size: lambda: bytearray(b"x" * (size << 20)), 1, 1)
growth.AXES = {"held": axis}
print(*growth.measure_size("held", 64, 1))
"""  # in its own process: this one may have enough spare memory to take no more
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    seconds, peak = map(float, done.stdout.split())
    assert seconds > 0
    assert 60 << 20 < peak < 200 << 20


@pytest.mark.parametrize("name", growth.AXES)
def test_every_axis_can_be_measured(name: str) -> None:
    axis = growth.AXES[name]
    if axis.size == "simulation processes":
        pytest.skip("starts processes, as the rollouts' own tests do")
    size = 2 if name == "episodes" else axis.sizes[0]
    seconds, peak = growth.measure_size(name, size, torch.get_num_threads())
    assert seconds > 0
    assert peak >= 0


def test_table_has_a_row_per_size_and_a_slope_per_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "AXES", {"minibatch-ot": replace(growth.AXES["minibatch-ot"], sizes=(8, 16))})
    table = growth.measure(["minibatch-ot"])
    growth.write(tmp_path, table, "# About\n")
    assert pd.read_csv(tmp_path / "benchmarks_growth.csv")["size"].tolist() == [8, 16]
    assert "| minibatch OT | batch | 8 to 16 |" in (tmp_path / "benchmarks_growth.md").read_text(encoding="utf-8")
    assert (tmp_path / "benchmarks_growth.png").stat().st_size > 1000
